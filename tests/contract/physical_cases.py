"""One case for each engine: a world in which the laws of `PhysicalBackups` are tried. A new one adds its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from actions.backup.physical import BackupKind, BaseRequest, RecoveryTarget, ScratchRequest
from actions.ports import PhysicalBackups, Scratch, no_progress
from tests.fakes.history import with_history
from tests.fakes.physical_world import FAR, with_two_buckets
from tests.fakes.s3 import MemoryObjects
from tests.fakes.world import World as Memory
from tests.fixtures.folder import Shared
from tests.fixtures.physical import Past
from tests.pgbackrest_world import SERVER as ARCHIVED_SERVER
from tests.pgbackrest_world import PgBackRestWorld
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

MARK = "drbot:scratch:contract"
FAKE = "fake"


@dataclass
class World:
    """`damage` makes a backup unusable, so that the catalogue tells."""

    port: PhysicalBackups
    scratch: Scratch
    server: str
    newest: str  # the newest full backup
    between: datetime  # a moment that the window holds
    damage: Callable[[str], None]
    taking: Callable[[BaseRequest], Awaitable[object]] | None = None  # where WAL must be archived meanwhile

    async def take(self, backup: str, kind: BackupKind = BackupKind.FULL, parent: str | None = None) -> None:
        request = BaseRequest(id=backup, server=self.server, kind=kind, parent=parent)
        if self.taking is None:
            await self.port.take(request, no_progress)
        else:
            await self.taking(request)

    def request(self, **changes: object) -> ScratchRequest:
        values = {"id": "s1", "server": self.server, "target": RecoveryTarget(time=self.between), "mark": MARK}
        return ScratchRequest.model_validate(values | changes)


Case = Callable[[pytest.FixtureRequest, Path], AbstractAsyncContextManager[World]]


@asynccontextmanager
async def fake(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    memory = with_history()
    yield _fake(memory, "base-new", memory.physical.history["primary"].commits[-2].at)


@asynccontextmanager
async def fake_twice(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    memory = with_two_buckets()
    yield _fake(memory, "base-full", memory.clock.now())


def _fake(memory: Memory, newest: str, between: datetime) -> World:
    def damage(backup: str) -> None:
        memory.physical.spoil("primary", backup, f"The object of base backup `{backup}` is missing.")

    return World(memory.physical, memory.scratch, "primary", newest, between, damage)


@asynccontextmanager
async def native(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    past: Past = request.getfixturevalue("past")
    yield _native(past, past.anew(directory))


@asynccontextmanager
async def native_twice(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    past: Past = request.getfixturevalue("past")
    real = past.anew(directory)
    assert isinstance(real.objects, MemoryObjects)
    real.objects.buckets[FAR] = {}
    changes: dict[str, object] = {"copy_bucket": FAR}
    yield _native(past, replace(real, policy_changes=changes))


def _native(past: Past, real: PhysicalWorld) -> World:
    def damage(backup: str) -> None:
        objects = real.objects.buckets[BUCKET]  # type: ignore[attr-defined]  # the fake that the world is made of
        for key in [key for key in objects if key.endswith(f"/{backup}/base.age")]:
            del objects[key]

    async def taking(wanted: BaseRequest) -> object:
        return await real.take(wanted.id, wanted.kind, wanted.parent)

    return World(real.engine, real.scratch, SERVER, "full", past.commits[4].after, damage, taking)


@asynccontextmanager
async def pgbackrest(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    backed_up: PgBackRestWorld = request.getfixturevalue("backed_up")
    async with backed_up.borrowed(directory) as other:
        usable = [entry for entry in await other.engine.catalogue(ARCHIVED_SERVER) if entry.problem is None]
        newest = next(entry.manifest.id for entry in usable if entry.manifest.kind is BackupKind.FULL)
        between = other.moment_between()
        yield World(other.engine, other.scratch, ARCHIVED_SERVER, newest, between, other.denounce)


@asynccontextmanager
async def folder(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[World]:
    shared: Shared = request.getfixturevalue("shared")
    world = await shared.borrowed(directory)
    yield World(world.engine, world.scratch, world.server_name, "full", shared.between, world.damage)


CASES: Mapping[str, Case] = {FAKE: fake, "native": native, "pgbackrest": pgbackrest, "folder": folder}
TWO_BUCKETS: Mapping[str, Case] = {FAKE: fake_twice, "native": native_twice}
"""With each base backup in a second bucket as well, where none is yet."""
