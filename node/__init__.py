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
    from node.jsonvalue import Json
    from node.migrate import MigrationError
    from node.reservation import Reservation
    from node.runtime.context import Run
    from node.runtime.effects import Applied, Effect, EffectCall, NotApplied, Retry, effect
    from node.runtime.errors import DidNotHappen, PhaseViolation, RunRefused, Transient
    from node.runtime.progress import Progress
    from node.runtime.retry import RetryRule
    from node.runtime.runner import Runner
    from node.runtime.workflow import Consumer, Producer, Topic, Workflow
    from node.service import Node, WorkspaceMismatch
    from node.stores import Event, Explanation, NewEvent, Permit, PublishCounts, Published
    from node.stores.peers import Peer
    from node.syncing import Comparison, Syncing, SyncRefused
    from node.watch import Changed
    from sync.address import AddressError

_MODULE_BY_NAME = {
    "AddressError": "sync.address",
    "Ambiguous": "node.errors",
    "Applied": "node.runtime.effects",
    "Changed": "node.watch",
    "Comparison": "node.syncing",
    "Consumer": "node.runtime.workflow",
    "DatabaseBusy": "node.connection",
    "DatabaseError": "node.connection",
    "DidNotHappen": "node.runtime.errors",
    "Effect": "node.runtime.effects",
    "EffectCall": "node.runtime.effects",
    "Event": "node.stores",
    "Explanation": "node.stores",
    "HomeElsewhere": "node.errors",
    "IllegalState": "node.errors",
    "InvalidInput": "node.errors",
    "Json": "node.jsonvalue",
    "LeaseLost": "node.errors",
    "LeasemeshError": "node.errors",
    "MigrationError": "node.migrate",
    "NewEvent": "node.stores",
    "Node": "node.service",
    "NotApplied": "node.runtime.effects",
    "NotAvailable": "node.errors",
    "NotFound": "node.errors",
    "NotOwner": "node.errors",
    "Peer": "node.stores.peers",
    "Permit": "node.stores",
    "PermitRefused": "node.errors",
    "PhaseViolation": "node.runtime.errors",
    "Producer": "node.runtime.workflow",
    "Progress": "node.runtime.progress",
    "PublishCounts": "node.stores",
    "Published": "node.stores",
    "Reservation": "node.reservation",
    "Retry": "node.runtime.effects",
    "RetryRule": "node.runtime.retry",
    "Run": "node.runtime.context",
    "RunRefused": "node.runtime.errors",
    "Runner": "node.runtime.runner",
    "StaleVersion": "node.errors",
    "StillReserved": "node.errors",
    "SyncRefused": "node.syncing",
    "Syncing": "node.syncing",
    "TooEarly": "node.errors",
    "Topic": "node.runtime.workflow",
    "Transaction": "node.database",
    "Transient": "node.runtime.errors",
    "Workflow": "node.runtime.workflow",
    "WorkspaceMismatch": "node.service",
    "effect": "node.runtime.effects",
}

__all__ = [
    "AddressError",
    "Ambiguous",
    "Applied",
    "Changed",
    "Comparison",
    "Consumer",
    "DatabaseBusy",
    "DatabaseError",
    "DidNotHappen",
    "Effect",
    "EffectCall",
    "Event",
    "Explanation",
    "HomeElsewhere",
    "IllegalState",
    "InvalidInput",
    "Json",
    "LeaseLost",
    "LeasemeshError",
    "MigrationError",
    "NewEvent",
    "Node",
    "NotApplied",
    "NotAvailable",
    "NotFound",
    "NotOwner",
    "Peer",
    "Permit",
    "PermitRefused",
    "PhaseViolation",
    "Producer",
    "Progress",
    "PublishCounts",
    "Published",
    "Reservation",
    "Retry",
    "RetryRule",
    "Run",
    "RunRefused",
    "Runner",
    "StaleVersion",
    "StillReserved",
    "SyncRefused",
    "Syncing",
    "TooEarly",
    "Topic",
    "Transaction",
    "Transient",
    "Workflow",
    "WorkspaceMismatch",
    "effect",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)
