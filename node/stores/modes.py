"""Modes: how a topic's events, or a handler's work, are claimed.

* *soft*: whoever claims first by the ownership rule. Apart, two devices may do the same work. It is recorded.
* *confirmed*: an effect begins only with the authority's permit (`node.stores.permits`).
* *home*: one node alone claims, and needs nobody for it.

A claim keeps the mode in which it was made: it ends under the rules under which it began, whatever is changed
meanwhile. Away from home only the home node leads: it names the next home (or none), and a claim elsewhere waits until
everything that it had done by then has arrived. When it never comes back, a person says so.

A change is known on a device when it has arrived there. What was claimed softly before that is soft work still.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from leasemesh.node.model import ids
from leasemesh.node.model.errors import HomeElsewhere, IllegalState, InvalidInput
from leasemesh.node.model.ids import NodeId
from leasemesh.node.model.jsonvalue import check_text, encode
from leasemesh.node.stores.base import Store, blob_of, is_internal

Mode = Literal["soft", "confirmed", "home"]
Kind = Literal["topic", "handler"]


@dataclass(frozen=True, slots=True)
class ModeSetting:
    """How a topic's events or a handler's work are claimed.

    Attributes:
        workflow, kind, name: what the setting is about.
        mode: see the module. A word of a later version counts as confirmed.
        home: the node that alone claims, when the mode is home.
        after: claims wait until all is here that this node had at `version`. None: nothing to wait for.
        version: see `after`.
        gone: a former home that never comes back. Its claims may be taken over.
        at: Unix milliseconds.
    """

    workflow: str
    kind: Kind
    name: str
    mode: Mode
    home: NodeId | None
    after: NodeId | None
    version: int
    gone: NodeId | None
    at: int


class ModeStore(Store):
    """Settings by topic and by handler."""

    def get(self, workflow: str, *, topic: str | None = None, handler: str | None = None) -> ModeSetting | None:
        """Return the setting of a topic or of a handler. None: nothing is set, so the code's own default counts."""
        return self._get(workflow, *_named(topic, handler))

    def list(self, workflow: str) -> builtins.list[ModeSetting]:
        """Return the settings of a workflow by kind and name."""
        found = [_setting(body) for _, body in self._bodies("modes", "workflow = ?", (workflow,))]
        return sorted(found, key=lambda one: (one.kind, one.name))

    def set(
        self,
        workflow: str,
        mode: Mode,
        *,
        topic: str | None = None,
        handler: str | None = None,
        home: str | None = None,
        gone: bool = False,
    ) -> ModeSetting:
        """Set the mode of a topic or of a handler. What is claimed already ends as it began.

        Args:
            workflow: the workflow.
            mode: soft, confirmed or home.
            topic, handler: one of them.
            home: with mode home, the node that claims. This one, when not given.
            gone: the present home never comes back, by a person's word: what only it knew is lost, and what it held
                may be done again. At the home itself, and where there is none now: the former home.

        Raises:
            HomeElsewhere: another node is home, and only that node may change it.
            IllegalState: this node is home, and what the former home did has not all arrived here: the next home would
                wait for this node alone.
            InvalidInput: there is no such mode, or a name or an id cannot be accepted.
            DatabaseError: this node is home, and the transaction around this is not durable.
        """
        kind, name = _named(topic, handler)
        _check_mode("mode", mode)
        if home is not None and mode != "home":
            raise InvalidInput("home", f"a node is home in mode home only, not in mode {mode}")
        if home is not None:
            blob_of(home)
        known = self._get(workflow, kind, name)
        # A power cut must not take back that this home was handed over: the next one is at work since.
        with self._database.transaction(durable=known is not None and known.home == self._node) as transaction:
            before = self._get(workflow, kind, name)
            was_home = before.home if before else None
            if before is not None and was_home not in (None, self._node) and not gone:
                raise HomeElsewhere(_what(before), was_home or "")
            handed_over = was_home == self._node
            lost = was_home
            if before is not None and was_home in (None, self._node):
                lost = before.after if before.after != self._node else None
                if handed_over and not gone and self._is_behind(before):
                    raise _not_all_came(before)
            new_home = (home or self._node) if mode == "home" else None
            known_lost = before.gone if before is not None and before.gone != new_home else None
            body = {
                "workflow": check_text("workflow", workflow),
                "kind": kind,
                "name": name,
                "mode": mode,
                "home": new_home,
                "after": self._node if handed_over else before.after if before and not gone else None,
                "version": self._database.version() if handed_over else before.version if before else 0,
                "gone": (lost if gone else None) or known_lost,
                "at": self._database.clock_ms(),
            }
            transaction.execute(
                "INSERT INTO modes (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
                (blob_of(ids.mode_id(workflow, kind, name)), encode("mode", body)),
            )
        return _setting(body)

    def claiming(self, workflow: str, topics: Iterable[str], handler: str, *, default: Mode = "soft") -> Mode:
        """Return the mode in which this node may claim now: the strictest of the handler's and the topics'.

        Args:
            workflow, topics, handler: what is claimed for whom.
            default: the mode of a topic without a setting, when the handler has none either.

        Raises:
            HomeElsewhere: another node claims there, alone.
            IllegalState: a former home has handed it over, and what it did has not all arrived here, or the default is
                home, and nobody has said which node that is.
            InvalidInput: the default is no mode.
        """
        _check_mode("default mode", default)
        names = [topic for topic in topics if not is_internal(topic)]
        settings = self._for_claim(workflow, names, handler)
        modes = {one.mode for one in settings}
        if not settings or (
            not _is_of(settings, "handler", handler) and not all(_is_of(settings, "topic", one) for one in names)
        ):
            if default == "home":
                wanted = f"a person names it (`leasemesh mode {workflow} home --handler {handler}` on that device)"
                raise IllegalState(f"handler {handler} of workflow {workflow}", "at home nowhere yet", wanted)
            modes.add(default)
        for one in settings:
            if one.mode == "home" and one.home != self._node:
                raise HomeElsewhere(_what(one), one.home or "nobody")
            if self._is_behind(one):
                raise _not_all_came(one)
        return "home" if "home" in modes else "confirmed" if "confirmed" in modes else "soft"

    def gone_homes(self, workflow: str, topics: Iterable[str], handler: str) -> builtins.set[NodeId]:
        """Return the former homes whose claims may be taken over, because they never come back."""
        return {one.gone for one in self._for_claim(workflow, topics, handler) if one.gone}

    def _for_claim(self, workflow: str, topics: Iterable[str], handler: str) -> builtins.list[ModeSetting]:
        keys = (_key(workflow, "handler", handler), *(_key(workflow, "topic", topic) for topic in topics))
        return [_setting(body) for _, body in self._bodies("modes", f"id IN ({', '.join('?' * len(keys))})", keys)]

    def _get(self, workflow: str, kind: Kind, name: str) -> ModeSetting | None:
        rows = self._bodies("modes", "id = ?", (_key(workflow, kind, name),))
        return _setting(rows[0][1]) if rows else None

    def _is_behind(self, setting: ModeSetting) -> bool:
        """Whether something is missing here of what the node had that handed over."""
        if setting.after in (None, self._node):
            return False
        rows = self._database.query(
            "SELECT 1 FROM version_vector WHERE site = unhex(?) AND version >= ?", (setting.after, setting.version)
        )
        return not rows


def _key(workflow: str, kind: Kind, name: str) -> bytes:
    return blob_of(ids.mode_id(check_text("workflow", workflow), kind, check_text(kind, name)))


def _what(setting: ModeSetting) -> str:
    return f"{setting.kind} {setting.name} of workflow {setting.workflow}"


def _not_all_came(setting: ModeSetting) -> IllegalState:
    return IllegalState(
        _what(setting), f"handed over by node {setting.after}", "wait until everything from there has arrived"
    )


def _is_of(settings: Iterable[ModeSetting], kind: Kind, name: str) -> bool:
    return any(one.kind == kind and one.name == name for one in settings)


def _check_mode(name: str, mode: str) -> None:
    if mode not in get_args(Mode):
        raise InvalidInput(name, f"{mode!r} is not one of {', '.join(get_args(Mode))}")


def _named(topic: str | None, handler: str | None) -> tuple[Kind, str]:
    if (topic is None) == (handler is None):
        raise InvalidInput("topic, handler", "name one of them: a setting is that of a topic or of a handler")
    return ("topic", topic) if topic is not None else ("handler", handler or "")


def mode_of(word: Any) -> Mode:
    """Return a mode as a row names it. A word of a later version counts as confirmed."""
    mode: Mode = word if word in get_args(Mode) else "confirmed"
    return mode


def _setting(body: dict[str, Any]) -> ModeSetting:
    mode = mode_of(body["mode"])
    return ModeSetting(
        workflow=body["workflow"],
        kind=body["kind"],
        name=body["name"],
        mode=mode,
        home=_node(body["home"]) if mode == "home" else None,
        after=_node(body["after"]),
        version=body["version"],
        gone=_node(body["gone"]),
        at=body["at"],
    )


def _node(value: str | None) -> NodeId | None:
    return None if value is None else NodeId(value.lower())
