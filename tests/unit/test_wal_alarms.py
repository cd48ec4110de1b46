"""What an archiver warns of, and when."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest

from actions.backup.physical import Lsn
from actions.backup.wal_alarms import BucketSeen, Seen, alarms
from actions.backup.wal_source import AlarmKind, SlotFacts, SourceFacts
from actions.backup.wal_status import BaseWanted, DiskLost, Durable, WalStatus, read_status, sign_status, status_place
from actions.errors import VerificationError
from tests.dump_world import Keys
from tests.fakes.clock import START
from tests.fakes.s3 import MemoryObject
from tests.fakes.wal import HERE, OPEN, THERE, MemoryWal

GIB = 1 << 30
POLICY = MemoryWal().policy
SYNCHRONOUS = POLICY.model_copy(update={"synchronous": True})
LOST = DiskLost(since=START, from_lsn="1/0")
SLOT = SlotFacts(active=True, restart_lsn="1/0", written_lsn="1/0", wal_status="reserved", safe_bytes=2 * GIB)
FACTS = SourceFacts(
    at=START,
    system_id="7",
    in_recovery=False,
    timeline_id=1,
    flush_lsn="1/100",
    segment_bytes=1 << 24,
    keep_bytes=2 * GIB,
    synchronous_names="",
    slot=SLOT,
)
GOOD = Seen(
    now=START,
    policy=POLICY,
    facts=FACTS,
    problem=None,
    free_bytes=50 * GIB,
    total_bytes=100 * GIB,
    rate=0.0,
    buckets=(BucketSeen(name=HERE, problem="", since=None),),
)


def facts(**changes: object) -> SourceFacts:
    return FACTS.model_copy(update=changes)


def streaming(state: str | None, names: str, **changes: object) -> SourceFacts:
    slot = SLOT.model_copy(update={"sync_state": state})
    return facts(slot=slot, synchronous_names=names, **changes)


def bucket(**changes: object) -> tuple[BucketSeen, ...]:
    return (replace(GOOD.buckets[0], **changes),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "kind", "words"),
    [
        (replace(GOOD, facts=facts(keep_bytes=None)), AlarmKind.KEEP_SIZE, "is not set"),
        (replace(GOOD, facts=facts(keep_bytes=64 << 20)), AlarmKind.KEEP_SIZE, "is 64 MiB .* at least 1.0 GiB"),
        (replace(GOOD, facts=facts(flush_lsn="1/50000000")), AlarmKind.SLOT_BEHIND, "holds 1.2 GiB .* 2.0 GiB more"),
        (
            replace(GOOD, facts=facts(slot=SLOT.model_copy(update={"wal_status": "lost"}))),
            AlarmKind.SLOT_LOST,
            "is lost",
        ),
        (
            replace(GOOD, facts=facts(slot=SLOT.model_copy(update={"wal_status": "unreserved"}))),
            AlarmKind.SLOT_BEHIND,
            "until|more and the slot is lost",
        ),
        (replace(GOOD, free_bytes=5 * GIB), AlarmKind.DISK_LOW, "5.0 GiB free. The primary keeps"),
        (
            replace(GOOD, rate=20 << 20, buckets=bucket(lacking=20)),
            AlarmKind.DISK_LOW,
            "full in 43 min at the present rate",
        ),
        (
            replace(GOOD, policy=POLICY.model_copy(update={"synchronous": True})),
            AlarmKind.NOT_SYNCHRONOUS,
            "does not name `drbot_wal`",
        ),
        *(
            (
                replace(GOOD, policy=SYNCHRONOUS, facts=streaming(state, "FIRST 1 (standby1, drbot_wal)")),
                AlarmKind.NOT_SYNCHRONOUS,
                f"is `{state}` by .* do not wait for it",
            )
            for state in ("potential", "async")
        ),
        *(
            (
                replace(GOOD, policy=SYNCHRONOUS, facts=streaming("sync", "drbot_wal", synchronous_commit=commit)),
                AlarmKind.NOT_SYNCHRONOUS,
                f"`synchronous_commit` is `{commit}`: .*{words}",
            )
            for commit, words in (
                ("local", "do not wait"),
                ("off", "do not wait"),
                ("remote_write", "do not wait for the archiver's disk"),
                ("remote_apply", "wait for ever"),
            )
        ),
        (
            replace(GOOD, policy=SYNCHRONOUS, facts=streaming("sync", "drbot_wal", not_waiting=("role `batch`",))),
            AlarmKind.NOT_SYNCHRONOUS,
            "set for role `batch`: their commits do not wait as others do. Run `ALTER ROLE ... RESET",
        ),
        (replace(GOOD, facts=facts(keep_bytes=200 * GIB, flush_lsn="2/10000000")), AlarmKind.SLOT_BEHIND, "4.2 GiB"),
        (replace(GOOD, disk_lost=LOST), AlarmKind.DISK_LOST, "empty disk .* is asked for WAL from 1/0 on"),
        (
            replace(GOOD, disk_lost=LOST, received_lsn=Lsn.parse("1/100")),
            AlarmKind.DISK_LOST,
            "from 1/0 to 1/100 was made good from the primary; no base is needed",
        ),
        (
            replace(GOOD, disk_lost=LOST, base_wanted=BaseWanted(after_lsn="1/50", since=START, reason="gone")),
            AlarmKind.DISK_LOST,
            "before 1/50 is missing, and a new full base backup is asked for",
        ),
        (replace(GOOD, buckets=bucket(lacking=16)), AlarmKind.BACKLOG, "faster than it is stored"),
        (
            replace(GOOD, buckets=bucket(problem="no answer.", since=START - timedelta(minutes=1), lacking=3)),
            AlarmKind.BUCKET_AWAY,
            "lacks 3 segment.* no answer",
        ),
        (
            replace(GOOD, buckets=bucket(problem="no answer.", since=START - timedelta(minutes=1), open=True)),
            AlarmKind.OPEN_AWAY,
            "open segment is not sent",
        ),
        (replace(GOOD, standbys={"b": "B is bad.", "a": "A is bad."}), AlarmKind.STANDBY_SLOT, "A is bad. B is bad."),
        (replace(GOOD, buckets=bucket(conflict="other bytes")), AlarmKind.CONFLICT, "other bytes"),
        (replace(GOOD, problem=(AlarmKind.SERVER_AWAY, "gone")), AlarmKind.SERVER_AWAY, "gone"),
        (
            replace(GOOD, base_wanted=BaseWanted(after_lsn="1/0", since=START, reason="it was removed")),
            AlarmKind.GAP,
            "before 1/0 was lost .*it was removed.* full base backup",
        ),
    ],
)
def test_each_trouble_has_its_sentence(seen: Seen, kind: AlarmKind, words: str) -> None:
    found = dict(alarms(seen))
    assert kind in found

    assert re.search(words, found[kind])


@pytest.mark.parametrize(
    "seen",
    [
        GOOD,
        replace(GOOD, facts=None),
        replace(GOOD, policy=SYNCHRONOUS, facts=streaming("sync", "drbot_wal")),
        replace(GOOD, policy=SYNCHRONOUS, facts=streaming("quorum", "ANY 1 (*)")),
        replace(GOOD, policy=SYNCHRONOUS, facts=streaming(None, "drbot_wal")),  # it does not stream yet
        replace(GOOD, disk_lost=LOST, now=START + timedelta(hours=25)),
        replace(GOOD, rate=500 << 20),  # quick, but nothing waits
        replace(GOOD, buckets=bucket(problem="no answer.", since=START - timedelta(seconds=5), lacking=3)),
    ],
)
def test_nothing_is_said_for_nothing(seen: Seen) -> None:
    assert list(alarms(seen)) == []


@pytest.mark.corruption
def test_a_full_disk_is_not_told_as_a_low_one_as_well() -> None:
    full = replace(GOOD, problem=(AlarmKind.DISK_FULL, "full"), free_bytes=0)
    assert dict(alarms(full)) == {AlarmKind.DISK_FULL: "full"}


async def test_a_status_is_read_by_whoever_trusts_its_signer() -> None:
    wal = MemoryWal()
    assert await read_status(wal.objects, wal.policy) is None
    status = WalStatus(
        server="main", at=START, buckets={HERE: Durable(at=START), THERE: Durable()}, open=Durable(at=START)
    )
    place = status_place(wal.policy)
    assert place[0] == OPEN
    await wal.objects.put(*place, sign_status(status, wal.keys.signing))
    assert await read_status(wal.objects, wal.policy) == status
    assert status.newest == START
    assert status.stale(START + timedelta(minutes=2))


@pytest.mark.corruption
async def test_a_forged_status_is_refused() -> None:
    wal = MemoryWal()
    place = status_place(wal.policy)
    status = WalStatus(server="main", at=START)
    await wal.objects.put(*place, sign_status(status, Keys().signing))
    with pytest.raises(VerificationError, match="does not trust"):
        await read_status(wal.objects, wal.policy)
    body = sign_status(status, wal.keys.signing).replace(b'"timeline_id": 0', b'"timeline_id": 1')
    wal.objects.buckets[place[0]][place[1]] = MemoryObject(body, START)
    with pytest.raises(VerificationError, match="does not match its signature"):
        await read_status(wal.objects, wal.policy)
    other = sign_status(status.model_copy(update={"server": "other"}), wal.keys.signing)
    await wal.objects.put(*place, other)
    with pytest.raises(VerificationError, match="it was moved"):
        await read_status(wal.objects, wal.policy)
