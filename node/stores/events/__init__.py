"""The event store, made of parts: here belongs the SQL about events and the reservations of them, each subject in a
part of its own that calls the others by their methods. The SQL of other tables does not."""

from leasemesh.node.stores.events.store import EventStore

__all__ = ["EventStore"]
