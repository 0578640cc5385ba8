"""The command permit: ask the authority for what a person is about to do by hand."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.authority import waiting_text
from leasemesh.node.cli.naming import find_run
from leasemesh.node.cli.output import ExitCode, styled
from leasemesh.node.cli.runs import permit_document
from leasemesh.node.cli.work import RunArgument
from leasemesh.node.model.ids import short_run
from leasemesh.node.stores import Permit


@command(
    app, "permit", panel="Work", examples=["leasemesh permit 019a2b3c4d5e", "leasemesh permit 019a2b3c4d5e --wait"]
)
def permit(
    context: Context,
    run: RunArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the authority has decided.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="With --wait: no longer than this.")] = None,
) -> None:
    """Ask for the permit to do by hand what a run has reserved, when it must not be done twice.

    Begin only when this command ends with 0: the permit is granted then, and stands until the run is released or
    settled. The request stays while the authority is away. Asking again goes on with it.
    """
    if timeout is not None and (not wait or timeout <= 0):
        raise CommandError("--timeout goes with --wait and is more than 0", ExitCode.USAGE)
    found = find_run(context.node, run)
    node = context.node
    granted = node.permits.request(found)
    node.authority.tend()
    granted = node.permits.get(found) or granted
    if wait and granted.state == "waiting":
        context.screen.warn(f"run {short_run(found)}: {_waiting(context, granted)}")
        granted = asyncio.run(_wait(context, found, timeout))
    if granted.state == "waiting":
        raise CommandError(
            f"run {short_run(found)}: {_waiting(context, granted)}; the request stays, --wait waits",
            ExitCode.NOT_AVAILABLE,
        )
    granted = node.permits.require(found)
    decided = context.device_name(granted.authority) if granted.authority else "the authority"
    lines = [
        styled(f"run {short_run(found)} has the permit of {decided}, work {granted.work}", "bold"),
        styled(f"when the work is done: leasemesh consume {short_run(found)}", "dim"),
    ]
    context.screen.show({"run": found, "permit": permit_document(context, granted)}, lambda: lines)


async def _wait(context: Context, run: str, timeout_s: float | None) -> Permit:
    """Wait for a decision. Returns the request as it stands when the time is over."""
    node = context.node
    try:
        async with asyncio.timeout(timeout_s):
            return await node.permit(run)
    except TimeoutError:
        found = node.permits.get(run)
        assert found is not None, "a run that has asked has a request"
        return found


def _waiting(context: Context, request: Permit) -> str:
    text = waiting_text(context, request)
    if not context.node.peers():
        text += "; no process here has a peer now (`leasemesh serve --peer URL` does)"
    return text
