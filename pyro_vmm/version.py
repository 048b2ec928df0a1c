"""The version, by itself so that every file may import it."""

__version__ = "0.1.0"
