"""Replication: what two nodes say to each other. Knows no SQL and nothing of `node`."""
