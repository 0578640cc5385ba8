"""Devices: what each node of the workspace is called, known also while it is away."""

from __future__ import annotations

import builtins
from dataclasses import dataclass

from leasemesh.node.model.ids import NodeId
from leasemesh.node.model.jsonvalue import check_text, encode
from leasemesh.node.stores.base import Store, blob_of


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device: its node id, its name for people, and when it took that name (Unix milliseconds).

    A device that was restored from a backup, or copied, goes on under a new id: its old self stays in the list.
    """

    node: NodeId
    name: str
    at: int


class DeviceStore(Store):
    """Names by node id. Each node writes its own row and no other."""

    def announce(self, name: str) -> bool:
        """Say what this device is called, unless that is known. Returns whether anything was written.

        Raises:
            InvalidInput: the name cannot be accepted.
        """
        if self.name_of(self._node) == check_text("name", name):
            return False
        with self._database.transaction() as transaction:
            body = {"node": self._node, "name": name, "at": self._database.clock_ms()}
            transaction.execute(
                "INSERT INTO devices (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
                (self._database.site_id, encode("device", body)),
            )
        return True

    def name_of(self, node: str) -> str | None:
        """Return a device's name, None when it has not told it yet."""
        found = self._bodies("devices", "id = ?", (blob_of(node),))
        return found[0][1]["name"] if found else None

    def list(self) -> builtins.list[DeviceInfo]:
        """Return all devices that have told their names, by name."""
        found = [
            DeviceInfo(NodeId(node), body["name"], body["at"]) for node, body in self._bodies("devices", "TRUE", ())
        ]
        return sorted(found, key=lambda device: (device.name, device.node))
