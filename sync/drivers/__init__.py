"""What carries out the engine's actions: the sync loop, dialling, websockets and threads.

What to send and when is decided in `sync`. SQL does not belong here.
"""
