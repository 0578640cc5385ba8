"""One device: its file, its tables, and what runs on it. `node.py` puts everything together.

What an app imports is in the package `leasemesh`. Nothing else belongs at this level.
"""
