"""Base backups go by dependency: never what another needs, what is pinned, or the last ones there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from actions.backup.manifest import StoredObject
from actions.backup.physical import BackupKind, PhysicalEntry, PhysicalManifest
from actions.backup.retention import retained
from actions.site import PhysicalPolicy

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
POLICY = PhysicalPolicy(
    server="primary",
    bucket="backups",
    wal_buckets=("backups",),
    recipients=("age1",),
    identity="env:IDENTITY",
    signing_key="env:KEY",
    trusted_signers=(),
    minimum_fulls=2,
)


def entry(name: str, days: float, *, parent: str | None = None, pinned: str = "", problem: str = "") -> PhysicalEntry:
    finished = NOW - timedelta(days=days)
    manifest = PhysicalManifest(
        id=name,
        server="primary",
        kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
        parent=parent,
        system_id="1",
        server_version=180000,
        timeline_id=1,
        start_lsn="0/1",
        stop_lsn="0/2",
        started_at=finished,
        finished_at=finished,
        stored=StoredObject(bucket="backups", key=name, bytes=1, sha256=""),
        plain_bytes=1,
        plain_sha256="",
    )
    return PhysicalEntry(manifest=manifest, manifest_sha256="", pinned=pinned, problem=problem or None)


def gone(*entries: PhysicalEntry) -> list[str]:
    return [each.manifest.id for each in retained(entries, POLICY, NOW).gone]


def test_full_backups_go_after_their_time_and_incrementals_after_theirs() -> None:
    fulls = [entry(f"full-{days}", days) for days in (1, 5, 20, 40, 50)]
    assert gone(*fulls) == ["full-40", "full-50"]
    # The newest that is older than the WAL stays: from it the oldest moment of the window is reached.
    incrementals = [entry(f"incr-{days}", days, parent="full-20") for days in (6, 8, 9)]
    assert gone(*fulls[:3], *incrementals) == ["incr-9"]


def test_never_fewer_usable_full_backups_than_the_policy_says() -> None:
    assert gone(entry("a", 100), entry("b", 200), entry("c", 300)) == ["c"]
    bad = entry("bad", 50, problem="damaged")
    assert gone(bad, entry("a", 100), entry("b", 200), entry("c", 300)) == ["bad", "c"]


def test_what_a_younger_backup_needs_stays_and_says_why() -> None:
    entries = [entry("new-1", 1), entry("new-2", 8), entry("old", 31), entry("incr", 5, parent="old")]
    found = retained(entries, POLICY, NOW)
    assert not found.gone
    assert found.kept == {"old": "`incr` rests on it"}


def test_a_pin_keeps_a_backup_and_all_it_needs() -> None:
    entries = [
        *(entry("new-1", 1), entry("new-2", 8), entry("old", 60)),
        *(entry("incr", 59, parent="old"), entry("pinned", 58, parent="incr", pinned="legal hold")),
        entry("other", 57, parent="incr"),
    ]
    found = retained(entries, POLICY, NOW)
    assert [each.manifest.id for each in found.gone] == ["other"]
    assert found.kept["pinned"] == "pinned: legal hold"
    assert found.kept["incr"] == "`pinned` rests on it"
    assert found.kept["old"] == "`incr` rests on it"


def test_wal_is_wanted_from_the_backup_that_the_oldest_moment_rests_on() -> None:
    entries = [entry("a", 1), entry("b", 6), entry("c", 8), entry("d", 15)]
    found = retained(entries, POLICY, NOW)
    assert found.replay_from is not None
    assert found.replay_from.manifest.id == "c"
    young = retained(entries[:2], POLICY, NOW)
    assert young.replay_from is not None
    assert young.replay_from.manifest.id == "b"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 90), st.integers(0, 9), st.sampled_from(["", "legal hold"]), st.sampled_from(["", "bad"])
        ),
        max_size=12,
    )
)
def test_whatever_there_is_no_backup_loses_what_it_rests_on(drawn: list[tuple[float, int, str, str]]) -> None:
    entries: list[PhysicalEntry] = []
    for number, (days, parent, pin, problem) in enumerate(sorted(drawn, reverse=True)):
        name = entries[parent % len(entries)].manifest.id if entries and parent % 3 else None
        entries.append(entry(f"b{number:02}", days, parent=name, pinned=pin, problem=problem))
    found = retained(entries, POLICY, NOW)
    stay = [each for each in entries if each not in found.gone]
    names = {each.manifest.id for each in stay}
    assert all(each.manifest.parent is None or each.manifest.parent in names for each in stay)
    assert all(not each.pinned for each in found.gone)
    fulls = [each for each in entries if each.manifest.kind is BackupKind.FULL and each.problem is None]
    kept = [each for each in fulls if each in stay]
    assert len(kept) >= min(POLICY.minimum_fulls, len(fulls))
    assert found.kept.keys() <= names
    order = [each.manifest.id for each in found.gone]
    for each in found.gone:
        if each.manifest.parent in order:
            assert order.index(each.manifest.id) < order.index(each.manifest.parent)
