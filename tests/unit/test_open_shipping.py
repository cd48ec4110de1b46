"""The open segment on its way into its bucket: what was there before is not believed by its name."""

from __future__ import annotations

import asyncio
import io
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.clock import SystemClock
from actions.backup.physical import Lsn, RecoveryTarget
from actions.backup.sealed import SealedKind
from actions.backup.segments import Segment
from actions.backup.wal_shipping import OpenShipping
from actions.backup.wal_spool import SpoolState, WalSpool
from tests.fakes.clock import START
from tests.fakes.wal import OPEN, SIZE, SYSTEM, MemoryWal
from tests.fixtures.waiting import until
from tests.unit.test_wal_files import wal_bytes

SEGMENT = Segment(1, 9, SIZE)
WRITTEN = SIZE // 2


@pytest.mark.corruption
async def test_after_a_restart_what_the_bucket_says_it_has_is_sent_again(tmp_path: Path) -> None:
    """A range is not trusted by its name: somebody may have put it there, and nothing of the segment would be sent."""
    wal, spool = MemoryWal(), WalSpool(tmp_path / "spool")
    with spool.alone():
        pass
    spool.remember(SpoolState(system_id=SYSTEM, segment_bytes=SIZE, begun=True))
    plain = wal_bytes(SEGMENT)[:WRITTEN]
    (spool.receive / f"{SEGMENT}.partial").write_bytes(plain + bytes(SIZE - WRITTEN))
    what = wal.what(SEGMENT, SealedKind.RANGE)
    ours = await wal.archive.put_range(*wal.sealer.seal(what, io.BytesIO(plain[:100]), START))
    forged = wal.archive.range_key(str(SEGMENT), 0, SIZE)
    await wal.objects.put(OPEN, forged, b"forged")
    shipping = OpenShipping(
        wal.archive,
        spool,
        wal.sealer,
        SystemClock(),
        every=timedelta(milliseconds=20),
        written=lambda: Lsn(0),
        behind=lambda: False,
    )
    work = asyncio.ensure_future(shipping.run())
    await until(lambda: shipping.lsn > SEGMENT.start)
    await until(lambda: ours.key not in wal.objects.buckets[OPEN])
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert shipping.lsn == SEGMENT.start + WRITTEN
    fetched = await wal.fetch(tmp_path / "wal", RecoveryTarget(latest=True), start=wal.start(9))
    assert (fetched.open_segment, fetched.end_lsn) == (str(SEGMENT), str(Lsn(SEGMENT.start + WRITTEN)))
    assert (tmp_path / "wal" / str(SEGMENT)).read_bytes()[:WRITTEN] == plain
    assert set(wal.objects.buckets[OPEN]) == {forged, wal.archive.range_key(str(SEGMENT), 0, WRITTEN)}
