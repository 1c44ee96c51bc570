"""The ledger of credit lines, holds and deductions.

The ledger is the product; it knows neither HTTP nor Digital River. Everything that changes money is
a command (`commands`), decided by a pure rule (`rules`) over a state (`state`), written with its
journal (`journal`) by the SQL in `store`, and let in by one door (`ledger.Ledger.execute`).
"""
