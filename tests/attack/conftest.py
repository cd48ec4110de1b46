"""The stage of every attack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from actions.ports import Clock
from storage.session import Database
from tests.attack.launch import Catalogue
from tests.attack.stage import Stage, accounts, with_roster
from tests.fakes.slack import FakeSlack
from tests.fixtures.office import OfficeForTests, shipped_plan

Setting = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def setting(memory: Database) -> Setting:
    """Make a stage that serves: `async with setting(change=...) as stage`."""

    @asynccontextmanager
    async def made(
        *,
        change: Callable[[dict[str, Any]], None] = lambda _: None,
        clock: Clock | None = None,
        workers: int = 1,
        socket_mode: bool = False,
    ) -> AsyncIterator[Stage]:
        catalogue = Catalogue()
        office = OfficeForTests(
            memory,
            with_roster(shipped_plan(), change),
            catalogue=catalogue,
            clock=clock,
            in_hand=timedelta(seconds=30),  # nobody else picks up what a handler is busy with
        )
        try:
            async with FakeSlack(paced=False) as slack:
                accounts(slack)
                stage = Stage(office, slack, catalogue)
                async with stage.open(workers=workers, socket_mode=socket_mode):
                    yield stage
        finally:
            await office.close()

    return made


@pytest.fixture
async def stage(setting: Setting) -> AsyncIterator[Stage]:
    """The shipped policy, one worker, HTTP."""
    async with setting() as made:
        yield made
