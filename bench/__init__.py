"""Measurements: `python -m bench` compares listingd with other queues; the scripts beside it stand alone."""
