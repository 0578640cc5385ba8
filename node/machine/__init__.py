"""What a node takes from the machine it runs on: clocks, chance, locks, and news of what other processes commit.

Rules do not belong here.
"""
