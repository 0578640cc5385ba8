"""What travels between files: reading and merging changes, quarantine, version vectors, identity, the sync of a
node.

The protocol belongs in `sync`, and what a change means in `stores`.
"""
