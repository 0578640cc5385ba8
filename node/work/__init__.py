"""Who works on which event: reservations, take-over after silence, and the authority that grants permits.

Handlers do not belong here.
"""
