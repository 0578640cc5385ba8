"""What a node takes from its machine: clocks, chance, locks, and news of what other processes commit.

Rules do not belong here.
"""
