"""All stores of one file."""

from __future__ import annotations

from leasemesh.node.database.file import Database
from leasemesh.node.stores.authorities import AuthorityStore
from leasemesh.node.stores.blocks import HandlerBlockStore
from leasemesh.node.stores.devices import DeviceStore
from leasemesh.node.stores.events import EventStore
from leasemesh.node.stores.modes import ModeStore
from leasemesh.node.stores.mutations import MutationStore
from leasemesh.node.stores.permits import PermitStore
from leasemesh.node.stores.runs import HandlerRunStore
from leasemesh.node.stores.states import HandlerStateStore
from leasemesh.node.stores.topics import TopicStore
from leasemesh.node.stores.workflows import ScriptRunStore, WorkflowStore


class Stores:
    """All stores of one file. They keep nothing of their own but what never changes, so that any number of them may be
    made from one database.

    Attributes:
        database: the file, for whoever needs transactions that span stores.
        workflows: titles, settings and status of workflows.
        topics: the streams of a workflow.
        events: what was published, who owns it, and what it was settled as.
        script_runs: sessions, which group runs for display.
        handler_runs: one row for each attempt of a handler.
        mutations: the effect ledger.
        handler_states: what handlers keep from run to run.
        permits: requests for permits, and what was decided on them.
        authorities: who decides on permits.
        modes: how handlers claim: soft, confirmed or home.
        handler_blocks: handlers that do not run until a person lets them.
        devices: what the nodes of the workspace are called.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.workflows = WorkflowStore(database)
        self.topics = TopicStore(database)
        self.events = EventStore(database)
        self.script_runs = ScriptRunStore(database)
        self.handler_runs = HandlerRunStore(database)
        self.mutations = MutationStore(database)
        self.handler_states = HandlerStateStore(database)
        self.permits = PermitStore(database)
        self.authorities = AuthorityStore(database)
        self.modes = ModeStore(database)
        self.handler_blocks = HandlerBlockStore(database)
        self.devices = DeviceStore(database)
