"""The stores: all SQL over the execution model's tables. Synchronous, explicit transactions.

Sockets and tasks do not belong here.
"""

from leasemesh.node.stores.all import Stores
from leasemesh.node.stores.authorities import Appointment, AuthorityInfo, AuthorityStore
from leasemesh.node.stores.blocks import EVERYWHERE, HandlerBlock, HandlerBlockStore
from leasemesh.node.stores.devices import DeviceInfo, DeviceStore
from leasemesh.node.stores.events import EventStore
from leasemesh.node.stores.events.effects_behind import EffectBehind
from leasemesh.node.stores.events.explaining import ClaimInfo, Explanation, GenerationInfo
from leasemesh.node.stores.events.publications import NewEvent
from leasemesh.node.stores.events.publishing import PublishCounts, Published
from leasemesh.node.stores.events.reading import Event, StatusName, TopicCounts
from leasemesh.node.stores.events.reservations import ReservationInfo
from leasemesh.node.stores.events.takeover import HeldElsewhere
from leasemesh.node.stores.modes import ModeSetting, ModeStore
from leasemesh.node.stores.mutations import Mutation, MutationStore, VerdictInfo
from leasemesh.node.stores.permits import Permit, PermitStore
from leasemesh.node.stores.runs import HandlerRun, HandlerRunStore
from leasemesh.node.stores.states import HandlerState, HandlerStateStore
from leasemesh.node.stores.topics import Topic, TopicStore
from leasemesh.node.stores.workflows import ScriptRun, ScriptRunStore, WorkflowInfo, WorkflowStore

__all__ = [
    "EVERYWHERE",
    "Appointment",
    "AuthorityInfo",
    "AuthorityStore",
    "ClaimInfo",
    "DeviceInfo",
    "DeviceStore",
    "EffectBehind",
    "Event",
    "EventStore",
    "Explanation",
    "GenerationInfo",
    "HandlerBlock",
    "HandlerBlockStore",
    "HandlerRun",
    "HandlerRunStore",
    "HandlerState",
    "HandlerStateStore",
    "HeldElsewhere",
    "ModeSetting",
    "ModeStore",
    "Mutation",
    "MutationStore",
    "NewEvent",
    "Permit",
    "PermitStore",
    "PublishCounts",
    "Published",
    "ReservationInfo",
    "ScriptRun",
    "ScriptRunStore",
    "StatusName",
    "Stores",
    "Topic",
    "TopicCounts",
    "TopicStore",
    "VerdictInfo",
    "WorkflowInfo",
    "WorkflowStore",
]
