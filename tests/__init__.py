"""The tests mirror the rooms of the service; every database test runs on SQLite and on PostgreSQL."""
