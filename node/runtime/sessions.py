"""Sessions: a `script_runs` row for each burst of activity of a workflow, for people to look at.

It is written with its first run, and ended when nothing of the workflow has run for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from leasemesh.node.execution.attempt import RunSession
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.runtime.driving import Driver
from leasemesh.node.runtime.performing import in_thread
from leasemesh.node.stores.workflows import Trigger

log = logging.getLogger("leasemesh.runtime")

LINGER_S = 1.0
"""What follows within a second belongs to the same burst."""

OPEN_LOOKED_AT = 20
"""Sessions of a workflow, the newest, that are looked at for those that a dead process left open."""


class Sessions:
    """The open sessions of one runner, by workflow. Used in the event loop's thread."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._node = driver.manager.node
        self._open: dict[str, RunSession] = {}
        self._ending: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def taking_part(self, workflow: str, trigger: Trigger) -> Iterator[RunSession]:
        """The session that a run belongs to, for as long as it runs."""
        timer = self._ending.pop(workflow, None)
        if timer is not None:
            timer.cancel()
        session = self._open.get(workflow)
        if session is None:
            session = self._open[workflow] = RunSession(self._node.handler_runs.new_id(), workflow, trigger)
        session.runs += 1
        try:
            yield session
        finally:
            session.runs -= 1
            if session.runs == 0:
                loop = asyncio.get_running_loop()
                self._ending[workflow] = loop.call_later(LINGER_S, self._linger_over, workflow)

    async def end_all(self) -> None:
        """End all sessions, because the runner stops."""
        for timer in self._ending.values():
            timer.cancel()
        self._ending.clear()
        sessions = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*self._tasks, *(self._end(session) for session in sessions))

    def end_those_left_open(self, workflows: list[str]) -> None:
        """End the sessions of this node that a dead process left open. Called in a thread, before the first run."""
        store = self._node.script_runs
        for workflow in workflows:
            for session in store.by_workflow(workflow, limit=OPEN_LOOKED_AT):
                if session.ended_at:
                    continue
                runs = self._node.handler_runs.by_session(session.id, limit=1)
                if runs and runs[0].node == self._node.site_id:
                    store.end(session.id, error="the process ended")

    def _linger_over(self, workflow: str) -> None:
        del self._ending[workflow]
        session = self._open.pop(workflow)
        task = asyncio.get_running_loop().create_task(self._end(session), name="leasemesh session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, session: RunSession) -> None:
        try:
            await in_thread(self._driver.executor, self._end_if_stored, session)
        except LeasemeshError as error:
            log.warning("session %s stays open: %s", session.id, error)

    def _end_if_stored(self, session: RunSession) -> None:
        if self._node.script_runs.get(session.id) is not None:  # polls that found nothing leave none
            self._node.script_runs.end(session.id, error=session.error)
