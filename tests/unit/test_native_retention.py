"""Retention deletes by dependency: whatever it takes away, all that stays can still be restored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.backup.chain import chain, usable, with_chains
from actions.backup.native_retention import deletable, segment_size, stored_segments, within
from actions.backup.physical import SEGMENT, BackupKind, Lsn, PhysicalEntry
from actions.backup.retention import why_it_stays
from actions.backup.segments import Segment
from actions.backup.wal import WalListing
from actions.errors import PermanentError
from actions.ports import ObjectFacts
from actions.site import PhysicalPolicy
from tests.fakes.entries import an_entry

NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def a_policy(minimum: int = 2) -> PhysicalPolicy:
    return PhysicalPolicy(
        server="main",
        bucket="b",
        wal_buckets=("b",),
        recipients=(),
        identity="",
        signing_key="",
        trusted_signers=(),
        minimum_fulls=minimum,
    )


def wal(last: int) -> dict[Segment, int]:
    return {Segment(1, number): 100 for number in range(1, last + 1)}


def test_the_customers_table() -> None:
    """Fulls 30 days, incrementals and WAL 7: an old full is restorable to its own end, with the WAL of its own span."""
    fulls = [an_entry(f"f{age:02}", NOW - age * DAY, segment=400 - 10 * age, segments=2) for age in range(0, 40, 5)]
    hours = [
        an_entry(f"i{age}", NOW - age * DAY + timedelta(hours=1), parent=f"f{age:02}", segment=402 - 10 * age)
        for age in (0, 5, 10)
    ]
    found = deletable([*fulls, *hours], wal(400), a_policy(), NOW)
    # i10 is older than its 7 days, but the oldest moment of the window is reached from it.
    assert found.expiry.backups == ("f35",)
    assert found.expiry.kept == {"i10": "the oldest moment of the recovery window rests on it"}
    left = {number for number in range(1, 401) if Segment(1, number) not in found.segments}
    assert left == {*range(302, 401), 300, 301, 250, 251, 200, 201, 150, 151, 100, 101}
    assert found.expiry.segments == len(found.segments)
    assert found.expiry.wal[0] == ("000000010000000000000001", "000000010000000000000063")
    assert found.expiry.bytes == 1000 + 100 * len(found.segments)


def test_what_is_pinned_or_not_ours_stays_with_its_reason() -> None:
    old = NOW - 90 * DAY
    entries = [
        an_entry("new", NOW - DAY, segment=90),
        an_entry("newer", NOW, segment=95),
        an_entry("week", NOW - 8 * DAY, segment=80),
        an_entry("pinned", old, pinned="incident 7", segment=5),
        an_entry("rests", old, parent="pinned", pinned="incident 8", segment=6),
        an_entry("forged", old, problem="forged", trusted=False, segment=7),
        an_entry("broken", old, problem="its object is missing", segment=8),
    ]
    found = deletable(entries, wal(100), a_policy(), NOW)
    assert found.expiry.backups == ("broken",)
    assert found.expiry.kept["pinned"] == "pinned: incident 7"
    assert "people decide" in found.expiry.kept["forged"]
    assert {Segment(1, 5), Segment(1, 6)}.isdisjoint(found.segments)
    assert Segment(1, 8) in found.segments


def test_without_a_usable_backup_no_wal_goes() -> None:
    bad = an_entry("bad", NOW - 90 * DAY, problem="its object is missing")
    assert deletable([bad], wal(9), a_policy(), NOW).segments == ()


def test_what_may_be_deleted_by_name() -> None:
    entries = [
        an_entry("one", NOW - DAY),
        an_entry("two", NOW - 2 * DAY),
        an_entry("on-two", NOW - DAY, parent="two"),
        an_entry("forged", NOW, parent="on-two", problem="forged", trusted=False),
        an_entry("broken", NOW - 3 * DAY, problem="cut off"),
        an_entry("held", NOW - DAY, parent="one", pinned="case 4711"),
    ]

    def refused(name: str, minimum: int = 1) -> str:
        return why_it_stays(entries, name, a_policy(minimum))

    assert "`on-two` rests on" in refused("two")
    assert "is pinned: case 4711" in refused("held")
    assert refused("on-two") == refused("broken") == refused("forged") == refused("gone") == ""
    entries = entries[:2]
    assert refused("one") == ""
    assert "has 2 usable full backups, and the plan file wants 2" in refused("one", minimum=2)


def test_backups_of_a_branch_that_was_left_keep_no_others_place() -> None:
    """A failover eight days ago, and a full backup of the old primary half a day after it: 380 to 385 are WAL that the
    new one has written since, and that a replay from the backup before the failover needs."""
    entries = [
        an_entry("today", NOW, segment=395),
        an_entry("beyond", NOW - 8 * DAY, segment=386),
        an_entry("before", NOW - 9 * DAY, segment=370),
        an_entry("ancient", NOW - 40 * DAY, segment=100),
    ]
    blind = deletable(entries, wal(400), a_policy(), NOW)
    found = deletable(entries, wal(400), a_policy(), NOW, {"beyond"})
    assert {Segment(1, number) for number in range(380, 386)} <= set(blind.segments)
    assert min(number for number in range(101, 401) if Segment(1, number) not in found.segments) == 370
    assert found.expiry.backups == ("ancient",)

    lonely = deletable([entries[1], entries[3]], wal(400), a_policy(1), NOW, {"beyond"})
    assert lonely.expiry.kept == {"ancient": "one of the 1 newest full backups"}
    assert deletable([entries[3]], wal(400), a_policy(1), NOW, {"ancient"}).expiry.backups == ()


def test_a_server_that_was_made_anew_loses_no_wal_to_the_backups_of_the_one_before_it() -> None:
    """It counts its WAL from the beginning again, far below the place where the window of the other one begins."""
    entries = [
        an_entry("anew", NOW - DAY, segment=3, system_id="8"),
        an_entry("other", NOW - 9 * DAY, segment=500),
        an_entry("older", NOW - 20 * DAY, segment=450),
    ]
    found = deletable(
        entries, {Segment(1, number): 100 for number in (*range(1, 40), *range(450, 600))}, a_policy(), NOW
    )
    assert {each.number for each in found.segments} == {1, 2}
    assert found.expiry.backups == ()


def test_one_of_a_branch_that_was_left_may_be_deleted_unless_it_is_all_there_is() -> None:
    entries = [an_entry("beyond", NOW), an_entry("before", NOW - DAY)]
    assert "wants 1" in why_it_stays(entries, "before", a_policy(1), {"beyond"})
    assert why_it_stays(entries, "beyond", a_policy(1), {"beyond"}) == ""
    assert "wants 1" in why_it_stays(entries[:1], "beyond", a_policy(1), {"beyond"})


@pytest.mark.parametrize("mib", [1, 64, 1024])
def test_wal_of_every_segment_size_goes_by_what_was_shown(mib: int) -> None:
    size = mib << 20
    listing = WalListing(
        "b",
        {
            str(Segment(1, number, size)): ObjectFacts(key="", bytes=100, modified_at=NOW)
            for number in range(1, (1 << 32) // size + 9)
        },
    )
    begin = Lsn((1 << 32) + 3 * size)
    entries = [
        entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"segment_bytes": size, **place})})
        for age in (0, 9)
        for entry in [an_entry(f"f{age}", NOW - age * DAY)]
        for place in [{"start_lsn": str(begin), "stop_lsn": str(Lsn(begin + 1))}]
    ]
    found = deletable(entries, stored_segments([listing], segment_size(entries)), a_policy(), NOW)
    assert found.expiry.segments == (1 << 32) // size + 2
    assert within(found.segments, found.expiry.wal) == list(found.segments)
    assert within(found.segments, found.expiry.wal[:0]) == []


def test_a_forged_manifest_does_not_steer_what_goes() -> None:
    def sized(name: str, size: int, **more: Any) -> PhysicalEntry:
        entry = an_entry(name, NOW, **more)
        return entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"segment_bytes": size})})

    forged = sized("forged", 1 << 30, problem="forged", trusted=False)
    assert segment_size([forged, sized("ours", 1 << 24)]) == 1 << 24
    assert segment_size([forged]) == SEGMENT
    for odd in (0, -1, 1 << 19, 3 << 20, 1 << 31):
        with pytest.raises(PermanentError, match="no server has"):
            segment_size([sized("ours", odd)])


ages = st.integers(0, 60 * 24)  # hours


@st.composite
def catalogues(draw: st.DrawFn) -> list[PhysicalEntry]:
    """Fulls with hours and quarters on them, in the order of time; some pinned, some broken."""
    hours = sorted(set(draw(st.lists(ages, min_size=1, max_size=12))), reverse=True)
    found: list[PhysicalEntry] = []
    for place, age in enumerate(hours):
        parents = [entry for entry in found if entry.manifest.timeline_id == 1]
        parent = draw(st.none() | st.sampled_from(parents)) if parents else None
        found.append(
            an_entry(
                f"b{place}",
                NOW - timedelta(hours=age),
                parent=parent.manifest.id if parent else None,
                segment=60 * 24 - age + 2,
                segments=draw(st.integers(1, 3)),
                problem="broken" if draw(st.integers(0, 9)) == 0 else None,
                pinned="kept" if draw(st.integers(0, 9)) == 0 else "",
            )
        )
    return found


@settings(max_examples=200)
@given(entries=catalogues(), minimum=st.integers(1, 3))
def test_all_that_stays_can_still_be_restored(entries: list[PhysicalEntry], minimum: int) -> None:
    entries, policy, archived = with_chains(entries), a_policy(minimum), wal(60 * 24 + 6)
    found = deletable(entries, archived, policy, NOW)
    gone = set(found.expiry.backups)
    left = [entry for entry in entries if entry.manifest.id not in gone]
    kept = set(archived) - set(found.segments)

    def spans(entry: PhysicalEntry) -> bool:
        first = Lsn.parse(entry.manifest.start_lsn) // SEGMENT
        last = Lsn.parse(entry.manifest.stop_lsn) // SEGMENT
        return all(Segment(1, number) in kept for number in range(first, last + 1))

    good = usable(entries)
    assert not [entry for entry in left if entry in good and (chain(left, entry) is None or not spans(entry))]
    fulls = [entry for entry in good if entry.manifest.kind is BackupKind.FULL]
    assert sum(entry in fulls for entry in left) >= min(minimum, len(fulls))
    assert not [entry for entry in entries if entry.pinned and entry.manifest.id in gone]
    young = [entry for entry in entries if NOW - entry.manifest.finished_at < policy.incremental_retention]
    assert not [entry for entry in young if entry.manifest.id in gone]
    # Every moment of the window is reached from something that ends before it, without a gap.
    beginning = NOW - policy.wal_retention
    reachable = [entry for entry in usable(left) if entry.manifest.finished_at <= beginning]
    if [entry for entry in good if entry.manifest.finished_at <= beginning]:
        begin = Lsn.parse(reachable[0].manifest.start_lsn) // SEGMENT
        assert all(Segment(1, number) in kept for number in range(begin, 60 * 24 + 7))
    # What is deleted is deleted from the top: nothing ever rests on what went before it.
    order = list(found.expiry.backups)
    for entry in entries:
        if entry.manifest.id in gone and entry.manifest.parent in gone:
            assert order.index(entry.manifest.id) < order.index(str(entry.manifest.parent))
    again = deletable(left, dict.fromkeys(kept, 100), policy, NOW)
    assert (again.expiry.backups, again.segments) == ((), ())
