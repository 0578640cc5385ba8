"""Addresses as people write them: what can be dialled, and what may be listened on."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

LOOPBACK_HOSTS = frozenset({"localhost", "ip6-localhost"})


class AddressError(ValueError):
    """An address that cannot be dialled or listened on. The message says which and why."""


def parse_address(text: str) -> str:
    """Return the websocket URL for what a person wrote: ws://…, wss://… or host:port.

    Raises:
        AddressError: it is none of these.
    """
    url = text if "://" in text else f"ws://{text}"
    problem = _problem_with(url, explicit_port="://" not in text)
    if problem:
        raise AddressError(f"cannot dial {text!r}: {problem}; write host:port, ws://host:port or wss://host:port")
    return url


def _problem_with(url: str, *, explicit_port: bool) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error).lower()
    if parts.scheme not in ("ws", "wss"):
        return f"the scheme {parts.scheme}:// is not a websocket"
    if not parts.hostname or any(character.isspace() for character in url):
        return "it names no host"
    if parts.username is not None or parts.password is not None:
        return "an address holds no user name or password"
    if parts.fragment:
        return "an address has no part after #"
    if port == 0 or (explicit_port and port is None):
        return "it names no port"
    return None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_HOSTS


def check_binding(host: str, token: str | None) -> None:
    """Refuse to offer a workspace to the network without a secret.

    Raises:
        AddressError: `host` can be reached from outside and there is no token.
    """
    if not token and not is_loopback(host):
        raise AddressError(
            f"refusing to listen on {host or 'all addresses'} without a token: whoever reaches it could read and write "
            "the workspace; give a token, or listen on 127.0.0.1"
        )
