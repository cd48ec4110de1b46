"""Folders of scratch instances: who holds one, on which machine it runs, and what may be swept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actions.adapters.scratch import ScratchInstances
from actions.adapters.serving_config import write_serving
from actions.backup.physical import RecoveryTarget, ScratchRestored, Serving
from actions.backup.scratch_place import HELD_FOR, Claim, ElsewhereError, Holder, Promotion, ScratchPlace
from actions.errors import DrError, TemporaryError, UserError
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
    return over(tmp_path)


@pytest.fixture
def reachable(server_directory: Path) -> ScratchPlace:
    """The same, where the account that runs PostgreSQL may enter."""
    return over(server_directory)


def over(directory: Path) -> ScratchPlace:
    made = ScratchPlace(directory, "s1")
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


def test_one_that_people_work_on_is_never_taken_over_by_time(place: ScratchPlace) -> None:
    """A worker that is away says nothing of a server that outlives it."""
    now = datetime.now(UTC)
    elsewhere(place, now)
    place.write_promoted(Promotion(at=now))
    with pytest.raises(ElsewhereError, match=r"if that machine is gone, remove `[^`]*machine\.json`\."):
        place.check_here(now + 100 * HELD_FOR)


async def test_a_full_disk_keeps_nothing_from_being_removed(
    reachable: ScratchPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ScratchPlace(reachable.folder.parent, "s2")  # of which it cannot even be noted that it runs here
    claim = reachable.claim()
    assert claim is not None
    runs.write_claim(claim.model_copy(update={"id": "s2", "expires_at": START + timedelta(hours=1)}))
    runs.write_restored(RESTORED)
    runs.data.mkdir()
    (runs.data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    monkeypatch.chdir(runs.data)
    opened, touched = Path.open, Path.touch

    def full(path: Path, *given: Any, **more: Any) -> Any:
        if reachable.folder.exists() and path.suffix == ".part":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *given, **more)

    def no_room(path: Path, *given: Any, **more: Any) -> None:
        if reachable.folder.exists() and path.parent.name == ".gone":
            raise OSError(errno.ENOSPC, "No space left on device")
        touched(path, *given, **more)

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(Path, "touch", no_room)
    port = instances(reachable)

    assert [facts.id for facts in await port.sweep(by_nobody)] == ["s1"]
    assert await port.removed("s1")  # noted once there is room


async def test_one_that_cannot_be_removed_keeps_no_other_one(reachable: ScratchPlace) -> None:
    other = ScratchPlace(reachable.folder.parent, "s2")
    claim = reachable.claim()
    assert claim is not None
    other.write_claim(claim.model_copy(update={"id": "s2"}))
    other.write_restored(RESTORED)

    async def not_asked(scratch: str) -> bool:
        if scratch == "s2":
            raise TemporaryError("The bot's own database does not answer.")
        return False

    assert [facts.id for facts in await instances(reachable).sweep(not_asked)] == ["s1"]
    assert other.claim() is not None


async def test_a_server_of_its_own_whose_claim_is_lost_is_no_junk(place: ScratchPlace) -> None:
    place.write_promoted(Promotion(at=START))
    (place.folder / "claim.json").unlink()
    os.utime(place.folder, (0, 0))
    await instances(place).sweep(by_nobody)
    assert place.data.exists()


def test_a_note_that_cannot_be_written_says_what_to_do(place: ScratchPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TemporaryError, match=r"its disk is full\. Free space there, then try again"):
        place.write_holder(START)


async def test_an_opening_that_was_broken_off_is_taken_back(reachable: ScratchPlace) -> None:
    """It has production's access rules by then, and nothing says that it is open."""
    (reachable.data / "postgresql.conf").write_text("listen_addresses = '127.0.0.1'\nunix_socket_directories = '/x'\n")
    for name in ("pg_hba.conf", "pg_ident.conf"):
        (reachable.data / name).write_text("ours\n")
    (reachable.data / "pg_hba.conf.production").write_text("host all all 0.0.0.0/0 trust\n")
    write_serving(reachable.data, host="10.0.0.1", superuser="postgres", plan=Serving(settings={}))
    assert "trust" in (reachable.data / "pg_hba.conf").read_text()

    with contextlib.suppress(DrError):  # there is no server in it that could start
        await instances(reachable).shut("s1")
    assert (reachable.data / "pg_hba.conf").read_text() == "ours\n"
    assert "127.0.0.1" in (reachable.data / "postgresql.conf").read_text()
