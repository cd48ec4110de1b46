"""Folders of scratch instances: who holds one, on which machine it runs, and what may be swept."""

from __future__ import annotations

import fcntl
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.adapters.scratch import ScratchInstances
from actions.backup.physical import RecoveryTarget, ScratchRestored
from actions.backup.scratch_place import HELD_FOR, Claim, Holder, Promotion, ScratchPlace
from actions.errors import UserError
from actions.site import Site
from tests.fakes.clock import START, MemoryClock

RESTORED = ScratchRestored(
    id="s1",
    backup="base",
    target=RecoveryTarget(latest=True),
    reached_lsn="0/1",
    reached_at=None,
    timeline_id=1,
    checked_pages=True,
)


@pytest.fixture
def place(tmp_path: Path) -> ScratchPlace:
    """Of an instance whose time was over an hour ago."""
    made = ScratchPlace(tmp_path, "s1")
    claim = Claim(
        id="s1",
        server="main",
        mark="m",
        made_at=START - timedelta(hours=2),
        expires_at=START - timedelta(hours=1),
        wanted_bytes=1,
    )
    made.write_claim(claim)
    made.write_restored(RESTORED)
    made.data.mkdir()
    return made


def instances(place: ScratchPlace) -> ScratchInstances:
    return ScratchInstances(Site(servers={}), place.folder.parent, MemoryClock())


async def by_nobody(_: str) -> bool:
    return False


def elsewhere(place: ScratchPlace, at: datetime) -> None:
    (place.folder / "machine.json").write_text(Holder(machine="pod-b", at=at).model_dump_json())


async def test_what_another_machine_runs_is_neither_swept_nor_touched(place: ScratchPlace) -> None:
    elsewhere(place, START - HELD_FOR + timedelta(minutes=1))
    port = instances(place)

    assert await port.sweep(by_nobody) == []
    for refused in (port.start("s1"), port.stop("s1"), port.promote("s1"), port.discard("s1", mark="m")):
        with pytest.raises(UserError, match="runs on `pod-b`"):
            await refused
    assert place.claim() is not None


async def test_what_was_promoted_after_the_look_is_not_swept(place: ScratchPlace) -> None:
    async def promoted_meanwhile(_: str) -> bool:
        place.write_promoted(Promotion(at=START))
        return False

    assert await instances(place).sweep(promoted_meanwhile) == []
    assert place.claim() is not None


async def test_a_restore_that_was_taken_up_again_is_not_swept(place: ScratchPlace) -> None:
    (place.folder / "instance.json").unlink()
    with place.held():
        assert await instances(place).sweep(by_nobody) == []
    assert place.claim() is not None


async def test_a_server_that_cannot_be_asked_is_in_use(place: ScratchPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for a postmaster that runs and takes no connections: this process, found in its data directory.
    (place.data / "postmaster.pid").write_text(f"{os.getpid()}\n\n\n1\n\n\n\nstarting\n")
    monkeypatch.chdir(place.data)

    assert await instances(place).sweep(by_nobody) == []
    assert place.claim() is not None


def test_whoever_looks_does_not_make_a_starting_restore_fail(place: ScratchPlace) -> None:
    with (place.folder / "lock").open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        released = threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN))
        released.start()
        with place.held():
            assert place.busy()
        released.join()
    assert not place.busy()


def test_a_removal_that_was_broken_off_is_ended(place: ScratchPlace) -> None:
    left = place.folder.with_name(".s1.removed-1")
    place.folder.rename(left)
    assert ScratchPlace.all(place.folder.parent) == []
    ScratchPlace.remove_rest(place.folder.parent)
    assert not left.exists()


def test_a_machine_that_is_silent_for_long_has_nothing_any_more(place: ScratchPlace) -> None:
    now = datetime.now(UTC)
    elsewhere(place, now)
    with pytest.raises(UserError, match=r"machine\.json"):
        place.check_here(now)
    place.drop_holder()
    assert place.elsewhere(now) is not None
    place.check_here(now + HELD_FOR + timedelta(seconds=1))
    place.write_holder(now)
    assert place.elsewhere(now) is None
    place.drop_holder()
    assert not (place.folder / "machine.json").exists()
