"""Fixtures that several folders of tests share."""

import asyncio
from contextlib import ExitStack, closing

import pytest

from leasemesh import Node

WITHIN_S = 60
"""How long a test waits for something that takes milliseconds: the machine may be busy, and hanging is worse."""


@pytest.fixture
def within():
    """A time-out around a wait: `async with within(): ...`."""
    return lambda seconds=WITHIN_S: asyncio.timeout(seconds)


@pytest.fixture
def opened():
    """Closes what was opened when the test is over, also when it has failed: a connection that the garbage collector
    finds later is an error in whatever test runs then. `database = opened(Database.open(...))`"""
    with ExitStack() as stack:
        yield lambda one: stack.enter_context(closing(one))


@pytest.fixture
async def open_node(tmp_path):
    """Opens nodes of one workspace by name; stops and closes them after the test."""
    nodes = []

    def open_it(file, **options):
        node = Node.open(tmp_path / f"{file}.db", **{"workspace": "team", "name": file, **options})
        nodes.append(node)
        return node

    yield open_it
    for node in nodes:
        await node.stop_sync()
        node.close()
