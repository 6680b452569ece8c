"""`python -m daemon` is `listingd`."""

from daemon.cli import main

if __name__ == "__main__":
    main()
