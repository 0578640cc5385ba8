"""The stores: all SQL over the execution model's tables. Synchronous, explicit transactions.

Sockets and tasks do not belong here.
"""

from leasemesh.node.stores.authorities import Appointment, AuthorityInfo, AuthorityStore
from leasemesh.node.stores.blocks import EVERYWHERE, HandlerBlock, HandlerBlockStore
from leasemesh.node.stores.devices import Device, DeviceStore
from leasemesh.node.stores.events import ClaimInfo, EventStore, Explanation, GenerationInfo, PublishCounts, Published
from leasemesh.node.stores.leasing import EffectBehind, ReservationInfo
from leasemesh.node.stores.modes import ModeSetting, ModeStore
from leasemesh.node.stores.mutations import Mutation, MutationStore, VerdictInfo
from leasemesh.node.stores.permits import Permit, PermitStore
from leasemesh.node.stores.publications import NewEvent
from leasemesh.node.stores.reading import Event, TopicCounts
from leasemesh.node.stores.runs import HandlerRun, HandlerRunStore
from leasemesh.node.stores.states import HandlerState, HandlerStateStore
from leasemesh.node.stores.takeover import HeldElsewhere
from leasemesh.node.stores.topics import Topic, TopicStore
from leasemesh.node.stores.workflows import ScriptRun, ScriptRunStore, Workflow, WorkflowStore

__all__ = [
    "EVERYWHERE",
    "Appointment",
    "AuthorityInfo",
    "AuthorityStore",
    "ClaimInfo",
    "Device",
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
    "Topic",
    "TopicCounts",
    "TopicStore",
    "VerdictInfo",
    "Workflow",
    "WorkflowStore",
]
