"""The ledger in bulk: opening balances from files, exports to files, and books for accountants.

Nothing here decides about money: an import goes through the ledger like every other command, and exports
only read.
"""
