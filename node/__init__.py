"""The device: one SQLite file, its tables, and the rules by which work in it has one owner."""
