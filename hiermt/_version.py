"""The one place that holds the version; a binary of another version is not used."""

__version__ = "0.1.0"
