"""The device: one SQLite file, its tables, and the rules by which work in it has one owner.

What an app needs is here: `from node import Node`. Names are imported when they are first used, because most commands
need few of them, and because getting the extension (`node.crsqlite`) must work before the rest of node can.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.connection import DatabaseBusy, DatabaseError
    from node.database import Transaction
    from node.errors import (
        Ambiguous,
        HomeElsewhere,
        IllegalState,
        InvalidInput,
        LeaseLost,
        LeasemeshError,
        NotAvailable,
        NotFound,
        NotOwner,
        PermitRefused,
        StaleVersion,
        StillReserved,
        TooEarly,
    )
    from node.migrate import MigrationError
    from node.service import Node, Reservation, WorkspaceMismatch
    from node.stores import Event, Explanation, NewEvent, Permit, PublishCounts, Published
    from node.stores.peers import Peer
    from node.syncing import Comparison, Syncing, SyncRefused
    from node.watch import Changed
    from sync.address import AddressError

_MODULE_BY_NAME = {
    "AddressError": "sync.address",
    "Ambiguous": "node.errors",
    "Changed": "node.watch",
    "Comparison": "node.syncing",
    "DatabaseBusy": "node.connection",
    "DatabaseError": "node.connection",
    "Event": "node.stores",
    "Explanation": "node.stores",
    "HomeElsewhere": "node.errors",
    "IllegalState": "node.errors",
    "InvalidInput": "node.errors",
    "LeaseLost": "node.errors",
    "LeasemeshError": "node.errors",
    "MigrationError": "node.migrate",
    "NewEvent": "node.stores",
    "Node": "node.service",
    "NotAvailable": "node.errors",
    "NotFound": "node.errors",
    "NotOwner": "node.errors",
    "Peer": "node.stores.peers",
    "Permit": "node.stores",
    "PermitRefused": "node.errors",
    "PublishCounts": "node.stores",
    "Published": "node.stores",
    "Reservation": "node.service",
    "StaleVersion": "node.errors",
    "StillReserved": "node.errors",
    "SyncRefused": "node.syncing",
    "Syncing": "node.syncing",
    "TooEarly": "node.errors",
    "Transaction": "node.database",
    "WorkspaceMismatch": "node.service",
}

__all__ = [
    "AddressError",
    "Ambiguous",
    "Changed",
    "Comparison",
    "DatabaseBusy",
    "DatabaseError",
    "Event",
    "Explanation",
    "HomeElsewhere",
    "IllegalState",
    "InvalidInput",
    "LeaseLost",
    "LeasemeshError",
    "MigrationError",
    "NewEvent",
    "Node",
    "NotAvailable",
    "NotFound",
    "NotOwner",
    "Peer",
    "Permit",
    "PermitRefused",
    "PublishCounts",
    "Published",
    "Reservation",
    "StaleVersion",
    "StillReserved",
    "SyncRefused",
    "Syncing",
    "TooEarly",
    "Transaction",
    "WorkspaceMismatch",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)
