"""What pgBackRest lists, read as the product's own words: backups, what they need, and the archive with its gaps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from actions.backup.pgbackrest import _damaged_span
from actions.backup.pgbackrest_archive import listing_of
from actions.backup.pgbackrest_info import (
    ID,
    PINNED,
    PROBLEM,
    STATE,
    VERIFIED,
    Backup,
    entries_of,
    segment_bytes,
    stanza_of,
)
from actions.backup.physical import SEGMENT, BackupKind, Lsn
from actions.backup.segments import Timelines
from actions.backup.wal import WalListing, WalStart, find_gaps
from actions.errors import PermanentError, TemporaryError, UserError

FULL, DIFF = "20261127-080000F", "20261127-080000F_20261127-081500D"
SHA = "a" * 40


def backup(label: str, **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "type": {"F": "full", "D": "diff", "I": "incr"}[label[-1]],
        "prior": None,
        "reference": None,
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000003"},
        "backrest": {"format": 5, "version": "2.45"},
        "database": {"id": 1, "repo-key": 1},
        "error": False,
        "info": {"delta": 30_000_000, "repository": {"delta": 3_000_000, "size": 4_000_000}, "size": 31_000_000},
        "lsn": {"start": "0/2000028", "stop": "0/3000050"},
        "timestamp": {"start": 1795766400, "stop": 1795766410},
        **changes,
    }


def info(*backups: Mapping[str, Any], **changes: Any) -> str:
    stanza = {
        "name": "main",
        "status": {"code": 0, "lock": {"backup": {"held": False}}, "message": "ok"},
        "cipher": "aes-256-cbc",
        "db": [{"id": 1, "repo-key": 1, "system-id": 7440000000000000001, "version": "15"}],
        "repo": [{"cipher": "aes-256-cbc", "key": 1, "status": {"code": 0, "message": "ok"}}],
        "archive": [
            {
                "database": {"id": 1, "repo-key": 1},
                "id": "15-1",
                "min": "000000010000000000000001",
                "max": "000000010000000000000009",
            }
        ],
        "backup": list(backups),
        **changes,
    }
    return json.dumps([stanza])


def test_a_backup_is_listed_with_what_it_rests_on() -> None:
    stanza = stanza_of(info(backup(FULL), backup(DIFF, prior=FULL, reference=[FULL])), "main")
    newest, oldest = sorted(
        entries_of(stanza, server="primary", buckets={1: "backups"}), key=lambda entry: entry.manifest.id, reverse=True
    )
    assert (oldest.manifest.id, oldest.manifest.kind, oldest.manifest.parent) == (FULL, BackupKind.FULL, None)
    assert (newest.manifest.kind, newest.manifest.parent) == (BackupKind.INCREMENTAL, FULL)
    assert oldest.manifest.system_id == "7440000000000000001"
    assert oldest.manifest.server_version == 150000
    assert (oldest.manifest.timeline_id, oldest.manifest.start_lsn) == (1, "0/2000028")
    assert oldest.manifest.finished_at == datetime.fromtimestamp(1795766410, UTC)
    assert (oldest.manifest.stored.bucket, oldest.manifest.stored.key) == ("backups", f"backup/main/{FULL}/")
    assert oldest.problem is None
    assert newest.problem is None


def test_our_notes_on_a_backup_are_read() -> None:
    state = '{"superuser":"admin","snapshot":"740:742:","checksums":true,"version":150018}'
    noted = backup(
        FULL,
        annotation={ID: "base-abc", VERIFIED: "2026-11-27T09:00:00+00:00", PINNED: "legal hold", STATE: state},
    )
    stanza = stanza_of(info(noted, backup(DIFF, prior=FULL, reference=[FULL])), "main")
    entries = {entry.manifest.stored.key: entry for entry in entries_of(stanza, server="primary", buckets={})}
    full, diff = entries[f"backup/main/{FULL}/"], entries[f"backup/main/{DIFF}/"]
    assert full.manifest.id == "base-abc"
    assert full.verified_at == datetime(2026, 11, 27, 9, tzinfo=UTC)
    assert full.pinned == "legal hold"
    assert (full.manifest.superuser, full.manifest.snapshot) == ("admin", "740:742:")
    assert full.manifest.checksums
    assert diff.manifest.checksums is None  # of a backup that we have not made, nobody told us
    assert diff.manifest.parent == "base-abc"
    assert full.manifest.stored.bucket == "repo1"


def test_a_note_does_not_change_what_a_plan_pins() -> None:
    plain = entries_of(stanza_of(info(backup(FULL)), "main"), server="primary", buckets={})
    noted = entries_of(
        stanza_of(info(backup(FULL, annotation={VERIFIED: "2026-11-27T09:00:00+00:00"})), "main"),
        server="primary",
        buckets={},
    )
    assert plain[0].manifest_sha256 == noted[0].manifest_sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"error": True}, "wrong checksum"),
        ({"lsn": None}, "while the server was down"),
        ({"annotation": {PROBLEM: "verify found a damaged file"}}, "verify found a damaged file"),
        ({"prior": "20261120-080000F", "reference": ["20261120-080000F"]}, "20261120-080000F"),
        ({"archive": {"start": "000000010000000000000000", "stop": "000000010000000000000001"}}, "begins with"),
        ({"archive": {"start": "000000010000000000000009", "stop": "00000001000000000000000A"}}, "ends with"),
    ],
)
def test_what_must_not_be_used_is_listed_with_its_problem(changes: Mapping[str, Any], said: str) -> None:
    entries = entries_of(stanza_of(info(backup(DIFF, **changes)), "main"), server="primary", buckets={})
    assert said in (entries[0].problem or "")


def test_an_answer_without_the_stanza_names_the_next_thing_to_do() -> None:
    missing = {"code": 1, "message": "missing stanza path"}
    with pytest.raises(UserError, match="stanza-create"):
        stanza_of(info(status=missing), "main")
    with pytest.raises(UserError, match="`other`"):
        stanza_of(info(), "other")
    with pytest.raises(PermanentError):
        stanza_of("no json", "main")


def test_a_repository_that_cannot_be_read_is_told_with_its_words() -> None:
    other = {"code": 99, "message": "[HostConnectError] unable to connect to 's3.example.com:443'"}
    with pytest.raises(TemporaryError, match=r"s3\.example\.com"):
        stanza_of(info(status={"code": 99, "message": "other"}, repo=[{"key": 1, "status": other}]), "main")


def listing(*names: str) -> WalListing:
    files = {
        f"{name[:16]}/{name}-{SHA}.zst": {"type": "file", "size": 100, "time": 1795766400 + number}
        for number, name in enumerate(names)
    }
    return listing_of(json.dumps({".": {"type": "path"}, "0000000100000000": {"type": "path"}, **files}), "backups")


def test_a_listing_holds_segments_and_histories_alone() -> None:
    text = json.dumps(
        {
            "0000000100000000": {"type": "path"},
            f"0000000100000000/000000010000000000000002-{SHA}.zst": {"type": "file", "size": 5, "time": 1795766400},
            "0000000100000000/000000010000000000000002.00000028.backup": {"type": "file", "size": 5, "time": 1},
            f"0000000100000000/000000010000000000000003.partial-{SHA}.zst": {"type": "file", "size": 5, "time": 1},
            "00000002.history": {"type": "file", "size": 5, "time": 1},
        }
    )
    found = listing_of(text, "backups")
    assert list(found.segments) == ["000000010000000000000002"]
    assert list(found.histories) == [2]
    assert found.segments["000000010000000000000002"].modified_at == datetime.fromtimestamp(1795766400, UTC)
    with pytest.raises(PermanentError):
        listing_of("no json", "backups")


def test_a_gap_is_found_in_the_listing() -> None:
    start = WalStart(system_id="1", timeline_id=1, lsn=Lsn.parse("0/2000028"))
    torn = listing("000000010000000000000002", "000000010000000000000003", "000000010000000000000006")
    (gap,) = find_gaps(start, Timelines.alone(1), torn)
    assert (gap.first, gap.last) == ("000000010000000000000004", "000000010000000000000005")
    assert gap.after is not None
    assert gap.before is not None


def test_the_size_of_segments_follows_from_where_backups_begin() -> None:
    assert segment_bytes(stanza_of(info(backup(FULL)), "main")) == SEGMENT
    large = backup(
        FULL,
        archive={"start": "000000010000000200000017", "stop": "000000010000000200000017"},
        lsn={"start": "2/5C000028", "stop": "2/5D000050"},
    )
    assert segment_bytes(stanza_of(info(large), "main")) == 64 << 20


@pytest.mark.corruption
@pytest.mark.parametrize(("number", "needed"), [(1, False), (2, True), (3, True), (4, False)])
def test_damaged_wal_spoils_a_backup_that_needs_it_for_itself(number: int, needed: bool) -> None:
    made = Backup.model_validate(backup("20261127-081304F"))
    name = f"{1:08X}{0:08X}{number:08X}"
    said = f"WAL segment `{name}`, which it needs, is damaged"
    assert _damaged_span(made, ["000000010000000000000009", name]) == (said if needed else "")
