"""Where `restore.py` reads from: stores whose connections break in the middle, and what it asks then."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actions.byhand import restore

BODY = bytes(range(256)) * 8192  # two blocks
NAME = "base/main/full/base.age"


class Store(ThreadingHTTPServer):
    """Gives one object of a bucket. `cuts`: after how many bytes of an answer its connection ends, one for each
    request; what comes after them is whole."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.cuts: list[int] = []
        self.reset = False  # instead of closed
        self.ranges: list[str | None] = []
        self.listing = "<L><Key>x/a</Key><IsTruncated>false</IsTruncated></L>"

    @property
    def place(self) -> str:
        return f"s3://bucket/x/?endpoint=http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.server.listing.encode() if "list-type" in self.path else BODY[first:]
        if self.path != f"/bucket/x/{NAME}" and "list-type" not in self.path:
            return self.send_error(404)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(body[:cut])
        if cut is not None and self.server.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(restore, "WAITS", (0.01, 0.01, 0))
    monkeypatch.setattr(restore, "PATIENCE", (0.01, 0))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Store() as made:
        serving = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield made
        made.shutdown()
        serving.join()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Another place that has it."""
    path = tmp_path / "copy" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    return tmp_path / "copy"


ABOUT = {"bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_is_cut_goes_on_where_it_ended(store: Store, tmp_path: Path, *, reset: bool) -> None:
    store.cuts, store.reset = [0, restore.BLOCK + 5, 7], reset
    restore.fetched(restore.Places([store.place]), NAME, ABOUT, tmp_path / "it")
    assert (tmp_path / "it").read_bytes() == BODY
    assert len(store.ranges) == 4
    assert store.ranges[0] is None

    store.cuts = [3]
    assert list(restore.Places([store.place]).bodies(NAME)) == [BODY]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_the_next_place_is_asked_where_one_breaks_off_every_time(
    store: Store, copy: Path, tmp_path: Path, *, reset: bool
) -> None:
    store.cuts, store.reset = [100, *[0] * 20], reset
    places = restore.Places([store.place, str(copy)])
    restore.fetched(places, NAME, ABOUT, tmp_path / "it")
    assert (tmp_path / "it").read_bytes() == BODY
    assert "breaks off after" in places.told[0]
    assert len(places.places) == 2  # another object may well come whole

    with pytest.raises(restore.Broken, match="cannot be read"):
        restore.fetched(restore.Places([store.place]), NAME, ABOUT, tmp_path / "it")


def test_a_folder_that_cannot_be_read_is_answered_by_the_next_place(
    store: Store, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def failing(path: Path, mode: str = "r") -> Any:
        if path == copy / NAME:
            raise OSError(5, "Input/output error")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", failing)
    places = restore.Places([str(copy), store.place])
    restore.fetched(places, NAME, ABOUT, tmp_path / "it")
    assert (tmp_path / "it").read_bytes() == BODY
    assert "Input/output error" in places.told[0]


def test_a_listing_that_is_cut_or_no_listing_is_asked_for_again(store: Store) -> None:
    store.cuts = [10]
    assert restore.Places([store.place]).names("") == ["a"]
    store.listing = "<html>try again later"
    with pytest.raises(restore.Away, match="None of the places answers"):
        restore.Places([store.place]).names("")


# ---------------------------------------------------------------- what PostgreSQL is told


SEGMENT = "000000010000000000000001"


def ended(tmp_path: Path, places: list[str], *, rests: bool = False) -> object:
    """What `restore_command` ends with."""
    settings: dict[str, object] = {"server": "main", "trust": [], "wal": places, "open": "", "segment_bytes": 1 << 24}
    (tmp_path / "settings").write_text(
        json.dumps({**settings, "system_id": "7", "stretches": [[1, 0, None]], "rests": rests})
    )
    asked = SimpleNamespace(settings=tmp_path / "settings", name=SEGMENT, path=tmp_path / "RECOVERYXLOG")
    with pytest.raises(SystemExit) as found:
        restore.wal(cast(Any, asked))
    return found.value.code


def test_the_archive_ends_only_where_every_place_says_so(
    store: Store, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(tmp_path, [store.place, str(copy)]) == 1
    gone = "s3://bucket/x/?endpoint=http://127.0.0.1:9"
    assert ended(tmp_path, [gone, str(copy)]) == restore.STOP_RECOVERY
    assert ended(tmp_path, [str(tmp_path / "nowhere"), str(copy)]) == restore.STOP_RECOVERY

    monkeypatch.setattr(f"{__name__}.NAME", f"wal/main/{SEGMENT}.sealed")
    store.cuts = [0] * 20
    assert ended(tmp_path, [store.place]) == restore.STOP_RECOVERY
    store.cuts = []
    assert ended(tmp_path, [store.place]) == restore.STOP_RECOVERY  # it is no segment: not the end of them

    # A server that has come to rest outlives the stores that it came from.
    assert ended(tmp_path, [gone], rests=True) == 1
    assert ended(tmp_path, [store.place], rests=True) == 1

    monkeypatch.setattr(restore.Archive, "write", lambda *_: int("a mistake of ours"))
    assert ended(tmp_path, [str(copy)]) == restore.STOP_RECOVERY
