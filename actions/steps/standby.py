"""A scratch instance that follows the archive: made to, stopped at a moment, and judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, Self

from actions.backup.physical import Following, Lsn, RecoveryTarget, ScratchFacts, Waiting
from actions.contract import Finding, Precondition, Probe, Step, Verdict
from actions.errors import TemporaryError, VerificationError
from actions.ports import Ports, Progress
from actions.site import Frozen
from actions.steps.forecasts import counting
from actions.steps.moments import exact
from actions.steps.phrases import size, span
from actions.steps.recovery import REPLAY_RATE, START, Aim, Measured, pages_rate
from actions.steps.scratch import DiscardScratch, here, instance

log = logging.getLogger(__name__)

FED_LATE = timedelta(minutes=5)  # a worker reads the archive for it several times a minute
BEHIND_LATE = timedelta(minutes=15)  # beyond its delay
HALT_LIMIT = timedelta(hours=6)  # of one of which nothing is forecast
UNREPLAYED = 32 << 20  # bytes: two segments that it has and does not replay


class FollowScratch(Step):
    """From now on it replays what the archive gains, as a standby, until it is stopped at a moment."""

    kind: Literal["follow_scratch"] = "follow_scratch"
    timeout: timedelta = timedelta(minutes=30)
    scratch: str
    delay: timedelta
    mark: str

    @property
    def summary(self) -> str:
        return f"Let `scratch-{self.scratch}` follow the archive{behind(self.delay)}"

    @property
    def before(self) -> str:
        return "paused at its moment"

    @property
    def after(self) -> str:
        return (
            "a standby that reads archived WAL alone: read only, archive_mode off, no credentials, kept until stopped"
        )

    def by_hand(self) -> tuple[str, ...]:
        return (
            'pg_ctl stop -D "$PGDATA" && rm -f "$PGDATA/recovery.signal" && touch "$PGDATA/standby.signal"',
            "echo \"recovery_min_apply_delay = '" + f"{self.delay // timedelta(seconds=1)}s" + "'\" >> "
            '"$PGDATA/postgresql.conf"  # without recovery_target_*; restore_command as it was',
            'pg_ctl start -w -D "$PGDATA"',
        )

    async def probe(self, ports: Ports) -> Probe:
        found = await here(ports, self.scratch)
        told = found.following
        done = told is not None and told.delay == self.delay and told.halting is None and found.address
        return Probe.DONE if done else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds
        await ports.scratch.follow(self.scratch, delay=self.delay)

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if found.following is None or not (await ports.postgres.server(found.name)).in_recovery:
            raise VerificationError(f"`{found.name}` does not follow. Look at its log.")

    async def outcome(self, ports: Ports) -> str:  # noqa: ARG002 - what to do next does not depend on it
        return (
            f"Next, when it is needed: `/dr-restore halt {self.scratch} --before-drop TABLE`, or `--at TIME`, stops it "
            "at a moment that it has not replayed; it is the restore then."
        )

    async def undo(self, ports: Ports) -> None:
        if await ports.scratch.find(self.scratch) is not None:
            await ports.scratch.discard(self.scratch, mark=self.mark)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (f"drbot restore discard {self.scratch}",)


class ReplaceStandby(DiscardScratch):
    """The old one goes, once the new one has been brought all that the archive holds of its newest timeline."""

    kind: Literal["replace_standby"] = "replace_standby"  # type: ignore[assignment]
    server: str
    new: str

    @property
    def summary(self) -> str:
        return f"Remove `scratch-{self.scratch}` once `scratch-{self.new}` follows all that is archived"

    @property
    def before(self) -> str:
        return f"both are there, the old one under the mark `{self.mark}`"

    async def apply(self, ports: Ports, progress: Progress) -> None:
        old, new = await ports.scratch.find(self.scratch), await instance(ports, self.new)
        if old is not None and (old.following is None or old.following.halting is not None):
            raise VerificationError(
                f"`{old.name}` was stopped at a moment, so it is kept. Discard it when you are done."
            )
        if new.following is not None:
            await ports.physical.feed(self.server, self.new)
            new = await instance(ports, self.new)
        told = new.following
        if told is not None and told.problem and not told.stranded:
            raise TemporaryError(
                f"`{new.name}` was not brought all that is archived: {told.problem} Look at the archive with "
                f"`/dr-backup status`; `scratch-{self.scratch}` is kept."
            )
        if told is None or told.problem:
            why = "it does not follow" if told is None else told.problem
            raise VerificationError(
                f"`{new.name}` cannot take the place of `scratch-{self.scratch}`: {why} Look at the archive with "
                f"`/dr-backup status`; after a failover take a base backup first: `/dr-backup base {self.server} full`."
            )
        await super().apply(ports, progress)


class HaltScratch(Step):
    """It replays to the target, rests there, and does not follow any more."""

    kind: Literal["halt_scratch"] = "halt_scratch"
    timeout: timedelta = HALT_LIMIT
    scratch: str
    server: str
    target: RecoveryTarget
    target_words: str
    delay: timedelta  # that it had

    @property
    def summary(self) -> str:
        return f"Stop `scratch-{self.scratch}` at {self.target_words}"

    @property
    def before(self) -> str:
        return f"follows the archive{behind(self.delay)}"

    @property
    def after(self) -> str:
        return "what it lacks is replayed, the target proven to be reached; production is not touched"

    def by_hand(self) -> tuple[str, ...]:
        return (
            'pg_ctl stop -D "$PGDATA" && rm "$PGDATA/standby.signal" && touch "$PGDATA/recovery.signal"',
            f"# postgresql.conf: no recovery_min_apply_delay; stop at {self.target}; recovery_target_action = pause",
            "pg_ctl start -w && psql -XAtc 'SELECT pg_get_wal_replay_pause_state(), pg_last_xact_replay_timestamp()'",
        )

    async def probe(self, ports: Ports) -> Probe:
        found = await here(ports, self.scratch)
        if found.following is not None:
            return Probe.TODO
        return Probe.DONE if found.restored is not None and found.restored.target == self.target else Probe.UNKNOWN

    async def apply(self, ports: Ports, progress: Progress) -> None:
        # What was brought before stays replayable if the archive does not answer: its problem is kept beside it.
        try:
            await ports.physical.feed(self.server, self.scratch)
        except TemporaryError as error:  # a disk without room even for that
            log.warning("halted_without_the_last_wal: %s: %s", self.scratch, error)
        await ports.scratch.halt(self.scratch, self.target, progress)

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if found.following is not None or found.restored is None or found.restored.target != self.target:
            raise VerificationError(f"`{found.name}` is not at {self.target}. Look at its log.")

    async def undo(self, ports: Ports) -> None:
        if await ports.scratch.find(self.scratch) is not None:
            await ports.scratch.follow(self.scratch, delay=self.delay)

    def undo_by_hand(self) -> tuple[str, ...]:
        return ('rm -f "$PGDATA/recovery.signal" && touch "$PGDATA/standby.signal"  # and no recovery_target_*',)


class FollowsBefore(Precondition):
    """The instance follows and has not replayed the target, or was stopped there by an earlier try."""

    kind: Literal["follows_before"] = "follows_before"
    scratch: str
    mark: str
    system_id: str
    target: RecoveryTarget

    @classmethod
    def of(cls, facts: ScratchFacts, target: RecoveryTarget) -> Self:
        return cls(scratch=facts.id, mark=facts.mark, system_id=facts.system_id, target=target)

    @property
    def summary(self) -> str:
        return f"`scratch-{self.scratch}` (system id {self.system_id}) has not replayed {self.target}"

    async def violation(self, ports: Ports) -> str | None:
        found = await ports.scratch.find(self.scratch)
        if found is None or (found.mark, found.system_id) != (self.mark, self.system_id):
            return f"Scratch instance `{self.scratch}` is gone, or is another one."
        if found.following is None:
            stopped = found.restored is not None and found.restored.target == self.target
            return None if stopped else f"`{found.name}` does not follow any more."
        return already_past(found, found.following, self.target)


def already_past(facts: ScratchFacts, following: Following, target: RecoveryTarget) -> str | None:
    """Why it cannot be stopped there; None when it can, or nobody can tell."""
    if not following.past(target):
        return None
    return (
        f"`{facts.name}` has replayed {replayed(following)}, beyond {target}, and a replay never goes back. Restore "
        "from a base backup: the same moment with `/dr-restore DATABASE`."
    )


def may_halt(facts: ScratchFacts, aim: Aim) -> bool:
    """Whether it follows and would become a restore to this moment, as far as anybody can tell."""
    target = aim.stop
    told = facts.following
    return told is not None and target is not None and told.halting is None and not told.past(target)


class Halting(Frozen):
    """How long a standby takes to become the restore to a moment."""

    replay: timedelta
    pages: timedelta  # what was replayed for weeks is not what was checked once
    counting: timedelta

    @property
    def stop(self) -> timedelta:
        """Until it rests there, checked."""
        return self.replay + self.pages

    @property
    def total(self) -> timedelta:
        return self.stop + self.counting

    def words(self, rto: timedelta) -> str:
        """`42 min, RTO 30 min; 31 min of it to read its pages, 10 min to count rows`."""
        parts = ((self.pages, "to read its pages"), (self.counting, "to count rows, at an assumed rate"))
        more = ", ".join(f"{span(takes)} {what}" for takes, what in parts if takes >= timedelta(seconds=1))
        return f"{span(self.total)}, RTO {span(rto)}" + (f"; of it {more}" if more else "")


def halting(facts: ScratchFacts, aim: Aim, rates: Sequence[Measured], *, size: int, counted: int) -> Halting:
    """`size`: bytes of all its databases; `counted`: of the one that is looked through."""
    bare = facts.restored is not None and facts.restored.without_checksums
    return Halting(
        replay=_catch_up(facts, aim, rates),
        pages=timedelta(0) if bare else timedelta(seconds=round(size / pages_rate(rates))),
        counting=counting(counted),
    )


def _catch_up(facts: ScratchFacts, aim: Aim, rates: Sequence[Measured]) -> timedelta:
    """How long the replay of what it lacks takes, at the rate of the last restore that replayed much."""
    told = facts.following
    end = aim.ends or (told.fed_lsn if told is not None else "")
    if told is None or not told.replayed_lsn or not end:
        return START
    rate = next((rate for each in rates if (rate := each.replay_rate) is not None), REPLAY_RATE)
    lacks = max(0, Lsn.parse(end) - Lsn.parse(told.replayed_lsn))
    return START + timedelta(seconds=round(lacks / rate))


def replayed(following: Following) -> str:
    """`up to 2026-11-23 10:11:17 UTC (0/4000100)`."""
    at = "no commit" if following.replayed_at is None else f"up to {exact(following.replayed_at)}"
    return f"{at} ({following.replayed_lsn})" if following.replayed_lsn else at


def state_words(facts: ScratchFacts, following: Following) -> str:
    """`following, 4 h behind`."""
    if following.halting is not None:
        return f"being stopped at {following.halting}"
    runs = "" if facts.address else ", does not run"
    return f"following{behind(following.delay)}{runs}"


def standby_finding(facts: ScratchFacts, following: Following, now: datetime) -> Finding:
    """Whether it does what it is kept for."""
    check = f"standby {facts.name}"
    problem = standby_problem(facts, following, now)
    if problem is None:
        read = "" if following.fed_at is None else f", archive read {span(now - following.fed_at)} ago"
        detail = f"follows `{facts.server}`{behind(following.delay)}, replayed {replayed(following)}{read}"
        return Finding(check=check, verdict=Verdict.OK, detail=detail)
    what, hint = problem
    return Finding(check=check, verdict=Verdict.WARN, detail=what, hint=hint)


def standby_problem(facts: ScratchFacts, told: Following, now: datetime) -> tuple[str, str] | None:
    """What is wrong, to be read after its name, and what to do; None where nothing is."""
    log = f"Look at its log; `/dr-restore discard {facts.id}` and `/dr-restore follow` make it anew."
    if told.halting is not None:
        return (
            f"is being stopped at {told.halting}, and no standby until then",
            f"Once its run is over: `/dr-restore halt {facts.id}` again, or `/dr-restore discard {facts.id}`.",
        )
    if not facts.address:
        return "does not run, so it replays nothing", f"A worker on its machine starts it again within a minute. {log}"
    if told.stranded:
        anew = f"`/dr-restore follow DATABASE --instead-of {facts.id}`"
        return (
            f"can follow no more: {told.problem}",
            f"{anew} makes it anew; this one is kept until the new one follows.",
        )
    if told.problem:
        return f"was not brought all there is: {told.problem}", "Look at the archive with `/dr-backup status`."
    if now - (told.fed_at or told.since) > FED_LATE:
        return "was brought no WAL for more than 5 min", "Is a worker alive on its machine? See `/dr doctor`."
    lacks = Lsn.parse(told.fed_lsn) - Lsn.parse(told.replayed_lsn) if told.fed_lsn and told.replayed_lsn else 0
    if told.waits is Waiting.WAL and lacks > UNREPLAYED:
        return f"has {size(lacks)} of WAL that it does not replay", log
    age = now - told.replayed_at if told.replayed_at is not None else timedelta(0)
    if told.waits is None and lacks > UNREPLAYED and age > told.delay + BEHIND_LATE:
        return f"is {span(age)} behind, {size(lacks)} of WAL; it was told {span(told.delay)}", log
    return None


def behind(delay: timedelta) -> str:
    """`, 4 h behind`; nothing without a delay."""
    return f", {span(delay)} behind" if delay else ""
