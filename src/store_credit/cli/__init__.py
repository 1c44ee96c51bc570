"""The command line: `store-credit`."""

from store_credit.cli.main import main

__all__ = ["main"]
