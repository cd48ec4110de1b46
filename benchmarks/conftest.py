"""Benchmarks use the servers of the tests; the large ones share one demo, since filling it takes a while."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio

from benchmarks.by_hand import settle
from bot.demo.choices import Size
from bot.demo.people import OLIVIA
from bot.demo.world import World, world
from tests.conftest import *  # noqa: F403 - fixtures and hooks are found by their names


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo() -> AsyncIterator[World]:
    """The whole demo with a first dump, on durable servers. SIZE=tiny|small|large|huge in the environment.

    The archiver of WAL has its place on a machine of its own; ARCHIVING=1 runs it on this one, beside both sides. The
    base backup that an alarm would ask for in the midst of it is made before.
    """
    archiving = os.environ.get("ARCHIVING", "") == "1"
    async with world(Size(os.environ.get("SIZE", "large")), archiving=archiving) as started:
        await settle(started.servers)
        await started.bot.ask("backup", "base", "primary", person=OLIVIA.person, timeout=timedelta(minutes=5))
        yield started
