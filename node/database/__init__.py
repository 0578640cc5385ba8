"""One SQLite file: how it is opened, migrated and written, and the table of tables.

The SQL of single tables belongs in `stores`, and what crosses to other devices in `replication`.
"""
