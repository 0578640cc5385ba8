"""All commands. The order of importing is the order in which --help lists them."""

from node.cli.app import app, run  # isort: skip
from node.cli import events, story, work, syncing, device  # isort: skip

__all__ = ["app", "device", "events", "run", "story", "syncing", "work"]
