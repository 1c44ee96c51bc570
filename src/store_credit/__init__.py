"""Store credit for Digital River checkouts."""

__version__ = "0.1.0"
