"""`pg_receivewal` never outlives whoever receives; a script stands in for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from actions.adapters.wal_receiver import PostgresWal
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
    site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN", tools=str(tools))})
    source = PostgresWal(site, MemorySecrets({"env:DSN": "host=127.0.0.1 user=nobody"}), "main", "slot")
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
