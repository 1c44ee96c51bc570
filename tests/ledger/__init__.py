"""The ledger, by itself: no HTTP, no Digital River."""
