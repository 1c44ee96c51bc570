"""The merchant API: issue, look up, and see why."""
