"""`python -m store_credit` is the `store-credit` command."""

from store_credit.cli import main

main()
