"""The stores: all SQL over the execution model's tables. Synchronous, explicit transactions, no sockets."""

from node.stores.authorities import Appointment, AuthorityInfo, AuthorityStore
from node.stores.blocks import EVERYWHERE, HandlerBlock, HandlerBlockStore
from node.stores.devices import Device, DeviceStore
from node.stores.events import ClaimInfo, EventStore, Explanation, GenerationInfo, PublishCounts, Published
from node.stores.leasing import EffectBehind, ReservationInfo
from node.stores.modes import ModeSetting, ModeStore
from node.stores.mutations import Mutation, MutationStore, VerdictInfo
from node.stores.permits import Permit, PermitStore
from node.stores.publications import NewEvent
from node.stores.reading import Event, TopicCounts
from node.stores.runs import HandlerRun, HandlerRunStore
from node.stores.states import HandlerState, HandlerStateStore
from node.stores.takeover import HeldElsewhere
from node.stores.topics import Topic, TopicStore
from node.stores.workflows import ScriptRun, ScriptRunStore, Workflow, WorkflowStore

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
