"""The AI providers, one adapter a file, and the three protocols they serve (protocols.py)."""
