"""What one bucket of WAL lacks and another one has is brought there, and nothing that is owed is forgotten."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.clock import SystemClock
from actions.backup import wal_owed
from actions.backup.sealed import Sealer
from actions.backup.segments import Segment
from actions.backup.wal_owed import OwedWal
from actions.backup.wal_spool import SpoolState, WalSpool
from actions.errors import TemporaryError
from tests.dump_world import Keys
from tests.fakes.clock import START
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fakes.wal import HERE, SIZE, SYSTEM, THERE, MemoryWal, plain_of
from tests.fixtures.waiting import until

OFTEN = timedelta(milliseconds=10)


class Unsteady(MemoryObjects):
    """Buckets that do not answer; counts how often each was listed."""

    def __init__(self, objects: MemoryObjects) -> None:
        super().__init__(clock=SystemClock())
        self.buckets, self.away, self.asked = objects.buckets, set[str](), dict[str, int]()

    def _bucket(self, name: str) -> dict[str, MemoryObject]:
        self.asked[name] = self.asked.get(name, 0) + 1
        if name in self.away:
            raise TemporaryError(f"Bucket `{name}` does not answer.")
        return super()._bucket(name)


class World:
    """An archiver that has received something; its disk holds no closed segment."""

    def __init__(self, directory: Path, *, begun: bool = True, unlisted: tuple[str, ...] = ()) -> None:
        self.wal = MemoryWal()
        self.objects = Unsteady(self.wal.objects)
        self.wal.objects = self.objects
        self.spool = WalSpool(directory / "spool")
        with self.spool.alone():
            pass
        self.spool.remember(SpoolState(system_id=SYSTEM, segment_bytes=SIZE, begun=begun, unlisted=unlisted))
        self.owed = OwedWal(self.wal.archive, self.spool, SystemClock(), every=OFTEN)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        work = asyncio.ensure_future(self.owed.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def names(self, bucket: str) -> set[str]:
        return set(self.objects.buckets[bucket])

    def key(self, number: int) -> str:
        return self.wal.archive.key(str(Segment(1, number, SIZE)))

    async def even(self) -> None:
        await until(lambda: self.names(HERE) == self.names(THERE))


async def test_a_bucket_that_lags_is_filled_from_the_other_one_however_long_ago(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(*range(1, 300))
    await world.wal.closed(300, 301, buckets=(HERE,))
    await world.wal.history(2, "1\t0/60000\tno reason\n", buckets=(HERE,))
    for number in (3, 150):  # somebody has deleted them
        del world.objects.buckets[THERE][world.key(number)]
    del world.objects.buckets[HERE][world.key(4)]
    async with world.at_work():
        await world.even()
        await until(lambda: len(world.names(HERE)) == 302)
    assert world.objects.buckets[THERE][world.key(3)].body == world.objects.buckets[HERE][world.key(3)].body
    assert world.owed.problems == {}


async def test_what_is_still_on_the_disk_is_left_to_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(1, 2, buckets=(HERE,))
    waiting = Segment(1, 2, SIZE)
    world.spool.path(str(waiting)).write_bytes(plain_of(waiting))
    async with world.at_work():
        await until(lambda: world.key(1) in world.names(THERE))
        await asyncio.sleep(0.05)
    assert world.key(2) not in world.names(THERE)


async def test_before_it_is_known_where_the_stream_goes_on_the_primary_is_asked(tmp_path: Path) -> None:
    """It may still have what the bucket lacks; then that goes through the archiver like anything else."""
    world = World(tmp_path, begun=False)
    await world.wal.closed(1, buckets=(HERE,))
    async with world.at_work():
        await asyncio.sleep(0.1)
        assert world.names(THERE) == set()
        (world.spool.receive / f"{Segment(1, 2, SIZE)}.partial").write_bytes(bytes(SIZE))
        await world.even()


async def test_damage_is_not_brought_and_holds_nothing_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(1, 2, 3, buckets=(HERE,))
    for number, cut in ((1, slice(None, -1)), (2, slice(None, None))):
        whole = world.objects.buckets[HERE][world.key(number)]
        body = bytearray(whole.body)
        body[-1] ^= 1
        await world.objects.put(HERE, world.key(number), bytes(body[cut]))
    async with world.at_work():
        await until(lambda: world.key(3) in world.names(THERE))
    assert world.names(THERE) == {world.key(3)}


@pytest.mark.corruption
async def test_what_is_there_and_cut_off_or_forged_is_brought_anew_from_the_other_bucket(tmp_path: Path) -> None:
    """Found by the sizes of the two lists; what was sealed twice, for other recipients, is left as it is."""
    world = World(tmp_path)
    await world.wal.closed(1, 2, 3, 4)
    await world.wal.history(2, "1\t0/60000\tno reason\n")
    history = world.wal.archive.key("00000002.history")
    whole = {key: found.body for key, found in world.objects.buckets[HERE].items()}
    await world.objects.put(THERE, world.key(1), whole[world.key(1)][:-1])
    await world.objects.put(THERE, world.key(2), b"forged")
    await world.objects.put(THERE, history, whole[history][:-1])
    await world.objects.delete(THERE, world.key(3))
    both = (world.wal.keys.recipient, Keys().recipient)
    segment = Segment(1, 3, SIZE)
    twice = Sealer(both, world.wal.keys.signing).seal(world.wal.what(segment), io.BytesIO(plain_of(segment)), START)[1]
    await world.objects.put(THERE, world.key(3), twice)
    async with world.at_work():
        await until(
            lambda: (
                {key: found.body for key, found in world.objects.buckets[THERE].items()}
                == whole | {world.key(3): twice}
            )
        )
        await asyncio.sleep(0.05)
    assert world.objects.buckets[THERE][world.key(3)].body == twice
    assert {key: found.body for key, found in world.objects.buckets[HERE].items()} == whole
    assert world.owed.problems == {}


@pytest.mark.corruption
async def test_what_another_server_has_stored_under_the_name_is_told_and_left(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(1)
    stranger = replace(world.wal.what(Segment(1, 1, SIZE)), system_id="8")
    body = world.wal.sealer.seal(stranger, io.BytesIO(bytes(SIZE)), START)[1]
    await world.objects.put(THERE, world.key(1), body)
    async with world.at_work():
        await until(lambda: "Two servers write the same archive" in world.owed.problems.get(THERE, ("", None))[0])
    assert world.objects.buckets[THERE][world.key(1)].body == body


async def test_a_silent_bucket_is_no_trouble_of_the_other_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(1, buckets=(HERE,))
    world.objects.away = {THERE}
    async with world.at_work():
        await until(lambda: world.objects.asked.get(THERE, 0) >= 2)
        await asyncio.sleep(0.05)
        assert world.owed.problems == {}  # its own lane tells of it, once there is anything to store


async def test_a_bucket_that_takes_nothing_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_owed, "COMPARE_AGAIN", OFTEN)
    world = World(tmp_path)
    await world.wal.closed(1, buckets=(HERE,))
    put = world.objects.put

    async def full(*_: object, **__: object) -> None:
        raise TemporaryError("Its disk may be full.")

    monkeypatch.setattr(world.objects, "put", full)
    async with world.at_work():
        await until(lambda: "Its disk may be full." in world.owed.problems.get(THERE, ("", None))[0])
        since = world.owed.problems[THERE][1]
        await asyncio.sleep(0.05)
        assert world.owed.problems[THERE][1] == since
        monkeypatch.setattr(world.objects, "put", put)
        await world.even()
        await until(lambda: world.owed.problems == {})


async def test_buckets_are_not_listed_again_and_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.wal.closed(1, 2)
    world.objects.asked.clear()
    async with world.at_work():
        await until(lambda: world.objects.asked == {HERE: 2, THERE: 2})  # each for itself and for the other one
        await asyncio.sleep(0.2)
    assert world.objects.asked == {HERE: 2, THERE: 2}


def test_what_is_settled_forgets_nothing_that_is_owed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bucket has got its share at the moment at which the other one is found silent."""
    spool = World(tmp_path, unlisted=(THERE,)).spool
    known, other = spool._known, threading.Thread(target=spool.owe, args=([HERE],))

    def read_slowly() -> SpoolState:
        found = known()
        if other.ident is None:
            other.start()
            other.join(0.3)
        return found

    monkeypatch.setattr(spool, "_known", read_slowly)
    spool.settle(THERE)
    other.join()
    assert spool.state is not None
    assert spool.state.unlisted == (HERE,)
    again = WalSpool(spool.directory).state
    assert again is not None
    assert again.unlisted == (HERE,)


def test_a_state_that_is_written_late_undoes_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a full disk."""
    spool = World(tmp_path).spool
    spool._unsaved = True
    remember, other = spool.remember, threading.Thread(target=spool.owe, args=([HERE],))

    def slowly(state: SpoolState) -> None:
        if other.ident is None:
            other.start()
            other.join(0.3)
        remember(state)

    monkeypatch.setattr(spool, "remember", slowly)
    spool.save()
    other.join()
    assert spool.state is not None
    assert spool.state.unlisted == (HERE,)
