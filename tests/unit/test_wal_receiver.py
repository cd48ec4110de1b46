"""`pg_receivewal` never outlives whoever receives, and what it says is understood; a script stands in for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from actions.adapters.wal_receiver import PostgresWal
from actions.backup.wal_source import DiskFullError, WalGoneError
from actions.errors import DrError, TemporaryError
from actions.site import Server, Site
from tests.fakes.secrets import MemorySecrets
from tests.fixtures.waiting import until


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    program = tmp_path / "pg_receivewal"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    return tmp_path


def _running(tools: Path) -> list[list[str]]:
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            words = each.cmdline()
        except psutil.NoSuchProcess:
            continue
        if str(tools / "pg_receivewal") in words:
            found.append(words)
    return found


@pytest.mark.parametrize("begun", [True, False])
async def test_it_ends_with_the_task_also_while_it_is_being_started(tools: Path, begun: bool) -> None:
    source = _source(tools)
    work = asyncio.ensure_future(source.receive(tools, synchronous=False))
    if begun:
        await until((tools / "begun").exists)
        assert _running(tools)
    else:
        await asyncio.sleep(0)  # it waits for the thread that starts the program
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await asyncio.sleep(0.3)
    assert _running(tools) == []


def _source(tools: Path) -> PostgresWal:
    site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN", tools=str(tools))})
    return PostgresWal(site, MemorySecrets({"env:DSN": "host=127.0.0.1 user=nobody"}), "main", "slot")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('could not write 16777216 bytes to WAL file "x": No space left on device', DiskFullError),
        ('could not open write-ahead log file "x": Disk quota exceeded', DiskFullError),
        ("ERROR:  requested WAL segment 000000010000000000000003 has already been removed", WalGoneError),
        ("connection to server failed: Connection refused", TemporaryError),
    ],
)
async def test_what_it_says_is_understood_whatever_the_language_of_the_machine(
    tools: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[DrError]
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    words = f"case $LC_ALL in C) echo '{said}' >&2;; *) echo 'Auf dem Gerät ist kein Speicherplatz mehr' >&2;; esac"
    (tools / "pg_receivewal").write_text(f"#!/bin/sh\n{words}\nexit 1\n")
    with pytest.raises(DrError) as raised:
        await _source(tools).receive(tools, synchronous=False)
    assert type(raised.value) is kind
    assert said.rsplit(maxsplit=1)[-1] in str(raised.value)
