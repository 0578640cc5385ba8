"""The event store, and the parts that it is made of: each has the SQL of one subject and calls the others by their
methods."""

from leasemesh.node.stores.events.store import EventStore

__all__ = ["EventStore"]
