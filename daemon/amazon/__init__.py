"""What Amazon accepts, as data and as checks. No I/O: everything here is told, never looked up."""
