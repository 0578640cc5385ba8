"""The official release archive: download, compare with the checksum, take the one file out of it."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from io import BytesIO

from .errors import ChecksumMismatch, WayFailed
from .locate import VERSION, library_name, platform_name

RELEASE_URL = f"https://github.com/vlcn-io/cr-sqlite/releases/download/v{VERSION}"

# From sources other than the release page itself. The archives without one exist, but nobody vouches for them here.
ARCHIVE_SHA256 = {
    "linux-x86_64": "8f6fd31a2be2ba8c3101aad067a504a2e63c8e9b51cc4ace786009c02e7ecbae",
    "linux-aarch64": "c26aac668db9f0c455a37cbfba2ae129a11313a1f5b30b4bdcee69cfa1d1f94a",
    "darwin-x86_64": None,
    "darwin-aarch64": None,
    "win-x86_64": None,
    "win-i686": None,
}
SHA256_VARIABLE = "LEASEMESH_CRSQLITE_SHA256"

# Many networks cannot reach the release page at all, and a build that does not need it follows: do not wait long.
CONNECT_SECONDS_MAX = 5.0
DOWNLOAD_SECONDS_MAX = 60.0

# The real archives hold a few megabytes; the limits only keep a wrong answer from filling the memory.
ARCHIVE_BYTES_MAX = 32 * 2**20
LIBRARY_BYTES_MAX = 64 * 2**20
_CHUNK_BYTES = 64 * 1024


def download_library(*, sha256: str | None = None, connect_seconds_max: float = CONNECT_SECONDS_MAX) -> bytes:
    """Return the extension's bytes out of the official archive for this platform.

    The environment variable LEASEMESH_CRSQLITE_URL names a mirror of the release folder. A mirror need not be trusted,
    since the checksum is compared all the same.

    Args:
        sha256: the archive's SHA-256, in hexadecimal digits, by the user's word. Without it LEASEMESH_CRSQLITE_SHA256
            counts, and then the one in this package.
        connect_seconds_max: longest wait for a connection, and for each piece of an answer.

    Raises:
        WayFailed: no archive or no checksum for this platform, it cannot be fetched, it is not what its checksum says,
            or it is not an archive with the extension in it.
    """
    platform = platform_name()
    if platform not in ARCHIVE_SHA256:
        raise WayFailed(f"there is no release for the platform {platform}")
    name = f"crsqlite-{platform}.zip"
    expected = _checked(sha256 or os.environ.get(SHA256_VARIABLE) or ARCHIVE_SHA256[platform], name)
    archive = _download(f"{release_url()}/{name}", connect_seconds_max)
    if hashlib.sha256(archive).hexdigest() != expected:
        raise ChecksumMismatch(f"what was downloaded as {name} does not have the right SHA-256")
    return _only_library(archive)


def _checked(sha256: str | None, name: str) -> str:
    if sha256 is None:
        raise WayFailed(
            f"no checksum of {name} is known here (get the SHA-256 of {release_url()}/{name} from somebody whom you "
            f"trust, and give it with --sha256 or {SHA256_VARIABLE})"
        )
    expected = sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", expected):
        raise WayFailed(f"{sha256!r} is no SHA-256, which has 64 hexadecimal digits")
    return expected


def release_url() -> str:
    """The folder that the archives are downloaded from."""
    return os.environ.get("LEASEMESH_CRSQLITE_URL", RELEASE_URL).rstrip("/")


def _download(url: str, connect_seconds_max: float) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise WayFailed(f"{url} is not a web address")
    deadline = time.monotonic() + DOWNLOAD_SECONDS_MAX
    body = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=connect_seconds_max) as response:
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > ARCHIVE_BYTES_MAX:
                    raise WayFailed(f"{url} is larger than {ARCHIVE_BYTES_MAX} bytes")
                if time.monotonic() > deadline:
                    raise WayFailed(f"{url} took longer than {DOWNLOAD_SECONDS_MAX:.0f} s")
    except urllib.error.HTTPError as error:
        raise WayFailed(f"{url} answered {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise WayFailed(f"{url} did not answer within {connect_seconds_max:g} s") from None
        raise WayFailed(f"{url} cannot be reached ({reason})") from None
    return bytes(body)


def _only_library(archive: bytes) -> bytes:
    """Read the extension out of the archive. Nothing is ever written under a name from the archive."""
    name = library_name()
    try:
        with zipfile.ZipFile(BytesIO(archive)) as container, container.open(name) as member:
            library = member.read(LIBRARY_BYTES_MAX + 1)
    except KeyError:
        raise WayFailed(f"the release archive holds no {name}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError, zlib.error) as error:
        raise WayFailed(f"the release archive is damaged ({error})") from None
    if len(library) > LIBRARY_BYTES_MAX:
        raise WayFailed(f"{name} in the release archive is larger than {LIBRARY_BYTES_MAX} bytes")
    return library
