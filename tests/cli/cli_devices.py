"""Devices of the tests of the command line, in this process: two that meet, one that works."""

import asyncio

from leasemesh import Node, RetryRule

RETRY_AT_ONCE = RetryRule(first_ms=1, most_ms=1, tries=50)


def meet(first, second):
    """Let two devices exchange everything, over a real connection."""
    asyncio.run(_meet(first, second))


async def _meet(first, second):
    new = {} if second.exists() else {"name": "desktop", "workspace": "team"}
    async with Node.open(first) as one, Node.open(second, **new) as two:
        listening = await one.start_sync(listen=("127.0.0.1", 0))
        await two.start_sync(peers=[listening.url])
        async with asyncio.timeout(60):
            await two.caught_up()
            await one.caught_up()


def work_until(path, workflow, condition, *, retry=RETRY_AT_ONCE):
    """Run a workflow's handlers on a file until a condition of its node holds, and nothing is left to do."""
    asyncio.run(_work_until(path, workflow, condition, retry))


async def _work_until(path, workflow, condition, retry):
    async with Node.open(path) as node, node.running([workflow], retry=retry, drain_s=5) as runner:
        observer = runner.observe()
        async with asyncio.timeout(60):
            await runner.idle()
            while not condition(node):
                await anext(observer)
            await runner.idle()
