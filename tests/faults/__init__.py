"""Faults that are made for real, under load; what was answered must be in the ledger, once."""
