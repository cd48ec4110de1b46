"""Which recovery points and escrows may go, decided purely: by what needs what, never by age alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from actions.escrow import EscrowEntry, EscrowManifest, SealingKey
from actions.points import DatabasePart, PointEntry, RecoveryPoint
from actions.secret_copies import SecretCopyEntry, SecretCopyManifest
from actions.site import EscrowPolicy, PointsPolicy
from actions.steps.escrow_expiry import OldEscrows, old_escrows
from actions.steps.point_expiry import AT_ONCE, OldPoints, old_points
from actions.steps.secret_copy_expiry import old_copies

NOW = datetime(2026, 11, 23, 10, 12, tzinfo=UTC)
POINTS = PointsPolicy(bucket="b", retention=timedelta(days=30), minimum=2, signing_key="env:K", trusted_signers=("s",))
ESCROWS = EscrowPolicy(
    bucket="b",
    retention=timedelta(days=30),
    minimum=2,
    recipients=("age1",),
    signing_key="env:K",
    trusted_signers=("s",),
)


def a_point(
    name: str, days: float, *, problem: str | None = None, pinned: str = "", dump: str = "", database: str = "shop"
) -> PointEntry:
    at = NOW - timedelta(days=days)
    part = DatabasePart(database=database, server="primary", moment=at, by_wal=False, backup=dump)
    return PointEntry(
        point=RecoveryPoint(id=name, taken_at=at, moment=at, databases=(part,)), problem=problem, pinned=pinned
    )


def points(*entries: PointEntry, pinned: dict[tuple[str, str], str] | None = None) -> OldPoints:
    return old_points(entries, pinned or {}, POINTS, NOW)


YOUNG = (a_point("young-1", 1), a_point("young-2", 2))


def a_copy(name: str, days: float, *, trusted: bool = True) -> SecretCopyEntry:
    manifest = SecretCopyManifest(
        id=name,
        cluster="main",
        made_at=NOW - timedelta(days=days),
        recipients=(),
        bucket="b",
        key="k",
        bytes=1,
        sha256="",
        secrets=(),
    )
    return SecretCopyEntry(manifest=manifest, trusted=trusted, problem=None if trusted else "It was forged.")


def test_a_sealed_copy_goes_with_its_point_and_what_a_plan_kept_goes_by_the_policy() -> None:
    copies = (a_copy("p40", 40), a_copy("before-a", 31), a_copy("before-b", 29), a_copy("x", 50, trusted=False))

    found = old_copies("main", copies, {"p40"}, ESCROWS, NOW)

    assert found.gone == ("before-a",)
    assert found.kept == {
        "x": "its manifest is not signed by us, so nobody knows how old it is",
        "p40": "it goes with its recovery point",
    }


def test_old_points_go_the_oldest_first_and_young_ones_stay() -> None:
    found = points(*YOUNG, a_point("p40", 40), a_point("p50", 50), a_point("p30", 29.9))

    assert found == OldPoints(gone=("p50", "p40"))


def test_the_newest_that_can_be_used_stay_however_old_they_are() -> None:
    found = points(
        a_point("a", 100), a_point("b", 99), a_point("c", 98), a_point("broken", 1, problem="It was forged.")
    )

    assert found.gone == ("a",)
    assert found.kept == {
        "b": "one of the 2 newest that can be used",
        "c": "one of the 2 newest that can be used",
        "broken": "it must not be used, so nobody knows how old it is",
    }


def test_a_pin_and_a_pinned_dump_keep_a_point() -> None:
    held = {("shop", "d2"): "case 4711"}
    found = points(
        *YOUNG,
        a_point("held", 40, pinned="case 1"),
        a_point("named", 41, dump="d2"),
        a_point("other", 42, dump="d2", database="other"),
        a_point("bare", 43, dump="d1"),
        pinned=held,
    )

    assert found.gone == ("bare", "other")
    assert found.kept == {"held": "pinned: case 1", "named": "its dump `d2` is pinned: case 4711"}


def test_one_plan_deletes_a_number_that_people_can_read() -> None:
    found = points(*YOUNG, *(a_point(f"p{number}", 40 + number) for number in range(AT_ONCE + 7)))

    assert (len(found.gone), found.later) == (AT_ONCE, 7)
    assert found.gone[0] == f"p{AT_ONCE + 6}"


@given(st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.booleans()), max_size=30))
def test_whatever_there_is_the_newest_usable_the_young_and_the_pinned_stay(
    made: list[tuple[int, bool, bool]],
) -> None:
    entries = [
        a_point(f"p{number}", days, problem="bad" if bad else None, pinned="held" if held else "")
        for number, (days, bad, held) in enumerate(made)
    ]
    gone = set(points(*entries).gone)
    left = [entry for entry in entries if entry.point.id not in gone]

    usable = [entry for entry in entries if entry.problem is None]
    assert len([entry for entry in left if entry.problem is None]) >= min(len(usable), POINTS.minimum)
    assert all(entry.problem is None and not entry.pinned for entry in entries if entry.point.id in gone)
    assert all(NOW - entry.point.taken_at > POINTS.retention for entry in entries if entry.point.id in gone)
    assert points(*left).gone == ()


def an_escrow(
    name: str, days: float, keys: str = "k", *, problem: str | None = None, trusted: bool = True
) -> EscrowEntry:
    held = tuple(SealingKey(name=f"key-{key}", fingerprint=key, made_at=NOW) for key in keys)
    manifest = EscrowManifest(
        id=name,
        cluster="main",
        made_at=NOW - timedelta(days=days),
        keys=held,
        recipients=("age1",),
        bucket="b",
        key=name,
        bytes=1,
        sha256="",
    )
    return EscrowEntry(manifest=manifest, problem=problem, trusted=trusted)


def escrows(*entries: EscrowEntry, needed: dict[str, str] | None = None) -> OldEscrows:
    return old_escrows("main", entries, needed or {}, ESCROWS, NOW)


FRESH = (an_escrow("e1", 1), an_escrow("e2", 2))


def test_old_escrows_go_unless_a_point_needs_them() -> None:
    found = escrows(*FRESH, an_escrow("e40", 40), an_escrow("e50", 50), needed={"e40": "point-7"})

    assert found.gone == ("e50",)
    assert found.kept == {"e40": "recovery point `point-7` needs it"}


def test_the_newest_one_that_holds_a_key_nobody_else_holds_stays() -> None:
    found = escrows(*FRESH, an_escrow("e40", 40, "ka"), an_escrow("e50", 50, "ka"), an_escrow("e60", 60, "kab"))

    assert found.gone == ("e50",)
    assert found.kept == {"e40": "no newer one holds `key-a`", "e60": "no newer one holds `key-b`"}


def test_what_is_not_ours_stays_and_damage_counts_for_nobody() -> None:
    found = escrows(
        *FRESH,
        an_escrow("forged", 9000, "", problem="It was forged.", trusted=False),
        an_escrow("cut", 40, "ka", problem="The object is missing."),
        an_escrow("whole", 50, "ka"),
        an_escrow("lost", 60, "k", problem="The object is missing."),
    )

    assert found.gone == ("lost",)
    assert set(found.kept) == {"forged", "cut", "whole"}


def test_a_cluster_never_goes_under_its_minimum() -> None:
    found = escrows(an_escrow("a", 100), an_escrow("b", 99, problem="The object is missing."))

    assert found.gone == ()
    assert set(found.kept) == {"a", "b"}


@given(st.lists(st.tuples(st.integers(0, 90), st.sets(st.sampled_from("abcd")), st.booleans()), max_size=25))
def test_every_key_that_was_held_is_held_afterwards(made: list[tuple[int, set[str], bool]]) -> None:
    entries = [
        an_escrow(f"e{number}", days, "".join(sorted(keys)), problem="bad" if bad else None)
        for number, (days, keys, bad) in enumerate(made)
    ]
    gone = set(escrows(*entries).gone)
    left = [entry for entry in entries if entry.manifest.id not in gone]

    def held(some: list[EscrowEntry]) -> set[str]:
        return {key.fingerprint for entry in some if entry.problem is None for key in entry.manifest.keys}

    assert held(left) == held(entries)
    usable = [entry for entry in entries if entry.problem is None]
    assert len([entry for entry in left if entry.problem is None]) >= min(len(usable), ESCROWS.minimum)
    assert all(NOW - entry.manifest.made_at > ESCROWS.retention for entry in entries if entry.manifest.id in gone)
