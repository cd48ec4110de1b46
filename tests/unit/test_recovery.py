"""Which base leads to a moment, what it loses and how long it takes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from actions.backup.physical import (
    Change,
    DeadEnd,
    Gap,
    Moment,
    PhysicalEntry,
    Proof,
    RecoveryTarget,
    RecoveryWindow,
    ScratchFacts,
    ScratchRestored,
    ScratchState,
)
from actions.errors import UserError
from actions.steps.recovery import Aim, aim_before, base_for, forecast, loss_words, measured, unreachable
from tests.fakes.history import HARMED_AT, a_base
from tests.fakes.world import START

HOUR = timedelta(hours=1)
OLD, NEW = (a_base(name, age=age, system_id="7") for name, age in (("old", 26 * HOUR), ("new", 2 * HOUR)))
BROKEN = a_base("broken", age=HOUR, system_id="7").model_copy(update={"problem": "its object is missing."})
BASES = (OLD, NEW, BROKEN)


def at(moment: datetime) -> Aim:
    return Aim(target=RecoveryTarget(time=moment), at=moment)


def base(aim: Aim, *, backup: str | None = None, entries: tuple[PhysicalEntry, ...] = BASES) -> str:
    return base_for("primary", entries, aim, backup=backup).manifest.id


def test_the_newest_usable_base_before_the_moment_is_taken() -> None:
    assert base(at(START)) == "new"
    assert base(at(START - 3 * HOUR)) == "old"
    assert base(Aim(target=RecoveryTarget(latest=True))) == "new"
    assert base(Aim(target=RecoveryTarget(lsn="0/3000100"), lsn="0/3000100")) == "new"


def test_a_base_can_be_named_when_it_is_from_before() -> None:
    assert base(at(START), backup="old") == "old"
    with pytest.raises(UserError, match="must not be used: its object is missing"):
        base(at(START), backup="broken")
    with pytest.raises(UserError, match="ends at 2026-11-23 08:12:00 UTC, after"):
        base(at(START - 3 * HOUR), backup="new")
    with pytest.raises(UserError, match=r"no base backup `nothing`. The newest usable ones: `new`, `old`"):
        base(at(START), backup="nothing")


def test_what_cannot_be_reached_is_told_with_what_can() -> None:
    with pytest.raises(UserError, match="The oldest moment in reach is 2026-11-22 08:12:00 UTC"):
        base(at(START - 30 * HOUR))
    with pytest.raises(UserError, match="no usable base backup"):
        base(at(START), entries=(BROKEN,))
    with pytest.raises(UserError, match=r"Nobody can tell from transaction 812 when it was. Name the backup"):
        base(Aim(target=RecoveryTarget(xid=812)))
    assert base(Aim(target=RecoveryTarget(xid=812)), entries=(OLD,)) == "old"


def window(*, newest: datetime | None = START, gaps: tuple[Gap, ...] = ()) -> RecoveryWindow:
    return RecoveryWindow(server="primary", bucket="b", newest=newest, newest_lsn="0/13000028", gaps=gaps)


def test_a_time_needs_a_later_commit_in_the_archive() -> None:
    aim = at(START - timedelta(minutes=1))
    assert unreachable("primary", [window()], NEW, aim) is None
    said = unreachable("primary", [window(newest=START - HOUR)], NEW, aim)
    assert said is not None
    assert said.startswith("No commit after 2026-11-23 10:11:00 UTC is archived, the newest moment known there is")
    assert unreachable("primary", [window(newest=None)], NEW, Aim(target=RecoveryTarget(latest=True))) is None


def test_a_place_far_beyond_the_archive_is_refused_before_anything_is_restored() -> None:
    aim = Aim(target=RecoveryTarget(lsn="F/0"), lsn="F/0")
    said = unreachable("primary", [window()], NEW, aim)
    assert said is not None
    assert said.startswith("LSN F/0 is not archived: the newest commit in the archive is at 0/13000028.")
    # A checkpoint or a restore point may lie behind the newest commit, and a branch that was left may be longer.
    near = Aim(target=RecoveryTarget(lsn="0/13000100"), lsn="0/13000100")
    assert unreachable("primary", [window()], NEW, near) is None
    untold = window().model_copy(update={"newest_lsn": ""})
    left = window().model_copy(
        update={"dead_ends": {"old": DeadEnd(timeline_id=1, lsn="F/1", living=2, forked_at="0/13000000")}}
    )
    assert unreachable("primary", [untold], NEW, aim) is None
    assert unreachable("primary", [left], NEW, aim) is None


def test_a_gap_blocks_only_where_every_bucket_has_it() -> None:
    gap = Gap(timeline_id=1, first="000000010000000000000004", last="000000010000000000000004", after=START - HOUR)
    aim = at(START - timedelta(minutes=1))
    said = unreachable("primary", [window(gaps=(gap,))], NEW, aim)
    assert said is not None
    assert "segment `000000010000000000000004` in every bucket" in said
    assert unreachable("primary", [window(gaps=(gap,)), window()], NEW, aim) is None
    # A timeline without its history, which has no dates, is no part of the way.
    unled = Gap(timeline_id=3, first="00000003.history", last="000000030000000000000009")
    assert unreachable("primary", [window(gaps=(unled,))], NEW, aim) is None
    dark = window(newest=None).model_copy(update={"problem": "`2.history` is damaged. Copy it."})
    for each in (aim, Aim(target=RecoveryTarget(latest=True))):
        assert unreachable("primary", [dark], NEW, each) == "`2.history` is damaged. Copy it."
        assert unreachable("primary", [dark, window()], NEW, each) is None
    assert unreachable("primary", [window(gaps=(gap,))], NEW, at(START - HOUR - timedelta(minutes=1))) is None


def test_the_forecast_uses_the_rates_of_the_last_restore() -> None:
    aim = Aim(target=RecoveryTarget(lsn="0/3000028"), lsn="0/3000028")
    assumed = forecast(BASES, NEW, aim, [window()], [])
    assert assumed.words(timedelta(minutes=30)) == "40 s at assumed rates, nothing was measured here yet, RTO 30 min"
    facts = ScratchFacts(
        id="s",
        server="primary",
        mark="",
        state=ScratchState.STOPPED,
        restored=ScratchRestored(
            id="s",
            backup="new",
            target=aim.target,
            reached_lsn="0/3000028",
            reached_at=None,
            timeline_id=1,
            checked_pages=True,
            seconds={"fetch": 50.0, "combine": 5.0, "check": 5.0, "replay": 100.0},
            bytes=1_000_000_000,
            plain_bytes=3_000_000_000,
            wal_bytes=1 << 20,
        ),
        made_at=START,
        expires_at=START,
    )
    found = forecast(BASES, NEW, aim, [window()], measured("primary", [facts], []))
    assert found.words(timedelta(minutes=1)) == "1 min 10 s at measured rates, RTO 1 min"
    assert not measured("other", [facts], [])


def test_a_restore_test_still_tells_the_rates_when_its_instance_is_gone() -> None:
    aim = Aim(target=RecoveryTarget(lsn="0/43000028"), lsn="0/43000028")  # 1 GiB of WAL behind the base

    def tested(at: datetime, seconds: dict[str, float], plain: int = 0, wal: int = 0) -> Proof:
        return Proof(
            id=f"p{at:%d%H}",
            server="primary",
            target=aim.target,
            backup="new",
            proven_at=at,
            rto=HOUR,
            rpo=HOUR,
            seconds=seconds,
            bytes=1,
            plain_bytes=plain,
            wal_bytes=wal,
        )

    little = tested(START, {"fetch": 30.0, "replay": 9.0}, plain=3_000_000_000, wal=1 << 20)
    much = tested(START - HOUR, {"fetch": 90.0, "replay": 16.0}, plain=3_000_000_000, wal=1 << 30)
    unmeasured = tested(START + HOUR, {"fetch": 1.0})

    found = forecast(BASES, NEW, aim, [window()], measured("primary", [], [much, little, unmeasured]))

    # 30 s for the files as the last one, 16 s for the WAL as the last one that replayed much, 10 s to start and stop.
    assert found.words(HOUR) == "56 s at measured rates, RTO 1 h"


def test_a_proof_that_was_signed_before_it_had_these_figures_stays_signed() -> None:
    old = {"id": "p", "server": "s", "target": RecoveryTarget(latest=True), "backup": "b", "rto": HOUR, "rpo": HOUR}
    proof = Proof.model_validate({**old, "proven_at": START})
    assert not {"plain_bytes", "wal_bytes"} & proof.model_dump(mode="json").keys()


def test_replay_is_forecast_by_the_wal_up_to_the_moment() -> None:
    half = at(START - HOUR)
    whole, part = (forecast(BASES, NEW, aim, [window()], []).total for aim in (at(START), half))
    assert part < whole
    assert forecast(BASES, NEW, Aim(target=RecoveryTarget(latest=True)), [window()], []).total == whole


def test_the_loss_is_said_with_the_transactions() -> None:
    moment = Moment(change=Change.DROP, xid=812, commit_lsn="0/4000200", committed_at=HARMED_AT, timeline_id=1, lost=17)
    aim = aim_before(moment, "public.orders")
    assert loss_words(aim, START) == "10:11:19.0, loses 41 s and 17 transactions"
    assert aim.words == ("just before the DROP of `public.orders` (transaction 812, committed 2026-11-23 10:11:19 UTC)")
    assert loss_words(at(HARMED_AT), START) == "10:11:19.0, loses 41 s"
    assert "is known once" in loss_words(Aim(target=RecoveryTarget(latest=True)), START)
