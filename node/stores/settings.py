"""What a file says about itself: the workspace that it belongs to and the node's name. Local, never replicated."""

from __future__ import annotations

from typing import Literal

from leasemesh.node.stores.base import Store

Setting = Literal["workspace", "name"]


class SettingStore(Store):
    """Settings of this file."""

    def get(self, setting: Setting) -> str | None:
        """Return a setting, None when it was never made."""
        rows = self._database.query("SELECT value FROM node WHERE key = ?", (setting,))
        return str(rows[0][0]) if rows else None

    def get_or_set(self, setting: Setting, value: str) -> str:
        """Return a setting. Make it, when it was never made. Of several processes at one moment the first one wins."""
        found = self.get(setting)
        if found is not None:
            return found
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute("INSERT INTO node VALUES (?, ?) ON CONFLICT DO NOTHING", (setting, value))
            ((stored,),) = transaction.execute("SELECT value FROM node WHERE key = ?", (setting,))
        return str(stored)

    def set(self, setting: Setting, value: str) -> None:
        """Change a setting."""
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute("INSERT OR REPLACE INTO node VALUES (?, ?)", (setting, value))
