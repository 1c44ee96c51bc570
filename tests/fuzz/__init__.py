"""Fuzzing: what reads from strangers, under random bytes that are guided by the code's own branches."""
