"""Everything that an app imports: `from leasemesh import Node, Workflow, effect`.

A name is imported when it is first used, because most programs need few of them and a command should start at once.
The code itself is in the folders `node`, `sync` and `migrations` of the checkout, which are linked into this package.
For tests of an app: `from leasemesh.testing import DeviceLab`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leasemesh.node.authoring.context import Run as Run
    from leasemesh.node.authoring.effects import Applied as Applied
    from leasemesh.node.authoring.effects import Effect as Effect
    from leasemesh.node.authoring.effects import EffectCall as EffectCall
    from leasemesh.node.authoring.effects import NotApplied as NotApplied
    from leasemesh.node.authoring.effects import Retry as Retry
    from leasemesh.node.authoring.effects import effect as effect
    from leasemesh.node.authoring.errors import DidNotHappen as DidNotHappen
    from leasemesh.node.authoring.errors import PhaseViolation as PhaseViolation
    from leasemesh.node.authoring.errors import RunRefused as RunRefused
    from leasemesh.node.authoring.errors import Transient as Transient
    from leasemesh.node.authoring.progress import Progress as Progress
    from leasemesh.node.authoring.retry import RetryRule as RetryRule
    from leasemesh.node.authoring.workflow import Consumer as Consumer
    from leasemesh.node.authoring.workflow import Producer as Producer
    from leasemesh.node.authoring.workflow import Topic as Topic
    from leasemesh.node.authoring.workflow import Workflow as Workflow
    from leasemesh.node.database.connection import DatabaseBusy as DatabaseBusy
    from leasemesh.node.database.connection import DatabaseError as DatabaseError
    from leasemesh.node.database.file import Transaction as Transaction
    from leasemesh.node.database.migrate import MigrationError as MigrationError
    from leasemesh.node.machine.watch import Changed as Changed
    from leasemesh.node.model.errors import Ambiguous as Ambiguous
    from leasemesh.node.model.errors import HomeElsewhere as HomeElsewhere
    from leasemesh.node.model.errors import IllegalState as IllegalState
    from leasemesh.node.model.errors import InvalidInput as InvalidInput
    from leasemesh.node.model.errors import LeaseLost as LeaseLost
    from leasemesh.node.model.errors import LeasemeshError as LeasemeshError
    from leasemesh.node.model.errors import NotAvailable as NotAvailable
    from leasemesh.node.model.errors import NotFound as NotFound
    from leasemesh.node.model.errors import NotOwner as NotOwner
    from leasemesh.node.model.errors import PermitRefused as PermitRefused
    from leasemesh.node.model.errors import StaleVersion as StaleVersion
    from leasemesh.node.model.errors import StillReserved as StillReserved
    from leasemesh.node.model.errors import TooEarly as TooEarly
    from leasemesh.node.model.jsonvalue import Json as Json
    from leasemesh.node.node import Node as Node
    from leasemesh.node.node import WorkspaceMismatch as WorkspaceMismatch
    from leasemesh.node.replication.peers import Peer as Peer
    from leasemesh.node.replication.syncing import Comparison as Comparison
    from leasemesh.node.replication.syncing import Syncing as Syncing
    from leasemesh.node.replication.syncing import SyncRefused as SyncRefused
    from leasemesh.node.runtime.runner import Runner as Runner
    from leasemesh.node.stores import Event as Event
    from leasemesh.node.stores import Explanation as Explanation
    from leasemesh.node.stores import NewEvent as NewEvent
    from leasemesh.node.stores import Permit as Permit
    from leasemesh.node.stores import PublishCounts as PublishCounts
    from leasemesh.node.stores import Published as Published
    from leasemesh.node.work.reservation import Reservation as Reservation
    from leasemesh.sync.address import AddressError as AddressError

_NAMES_BY_MODULE = {
    "node.authoring.context": ("Run",),
    "node.authoring.effects": ("Applied", "Effect", "EffectCall", "NotApplied", "Retry", "effect"),
    "node.authoring.errors": ("DidNotHappen", "PhaseViolation", "RunRefused", "Transient"),
    "node.authoring.progress": ("Progress",),
    "node.authoring.retry": ("RetryRule",),
    "node.authoring.workflow": ("Consumer", "Producer", "Topic", "Workflow"),
    "node.database.connection": ("DatabaseBusy", "DatabaseError"),
    "node.database.file": ("Transaction",),
    "node.database.migrate": ("MigrationError",),
    "node.machine.watch": ("Changed",),
    "node.model.errors": (
        "Ambiguous",
        "HomeElsewhere",
        "IllegalState",
        "InvalidInput",
        "LeaseLost",
        "LeasemeshError",
        "NotAvailable",
        "NotFound",
        "NotOwner",
        "PermitRefused",
        "StaleVersion",
        "StillReserved",
        "TooEarly",
    ),
    "node.model.jsonvalue": ("Json",),
    "node.node": ("Node", "WorkspaceMismatch"),
    "node.replication.peers": ("Peer",),
    "node.replication.syncing": ("Comparison", "SyncRefused", "Syncing"),
    "node.runtime.runner": ("Runner",),
    "node.stores": ("Event", "Explanation", "NewEvent", "Permit", "PublishCounts", "Published"),
    "node.work.reservation": ("Reservation",),
    "sync.address": ("AddressError",),
}
"""What the block above imports, for when the program runs. A test in tests/test_packaging.py compares the two."""

_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = sorted(_MODULE_BY_NAME)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_BY_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
