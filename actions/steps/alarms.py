"""What must be told of backups without being asked. Pure: how they stand, and a moment; alarms out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from actions.backup.native_window import passed
from actions.backup.physical import BackupKind, Proof, RecoveryWindow
from actions.schedules import Schedule
from actions.site import Frozen
from actions.steps.base_choice import usable_bases
from actions.steps.base_copies import copy_trouble
from actions.steps.choice import usable_entries
from actions.steps.health import Bases, Dumps, Health
from actions.steps.mirrors import Mirror, mirror_trouble
from actions.steps.phrases import counted, moment, names, size, span
from actions.steps.postures import moved
from actions.steps.side_copies import SideCopies
from actions.steps.upgrades import Upgrades, words

DUMP_GRACE = timedelta(hours=1)
FULL_GRACE = timedelta(hours=3)
"""How long after its instant a backup may end before it is late; as long again as the last one took is added."""

MISSED_INCREMENTALS = 3
UNCHECKED = timedelta(days=8)
"""Backups are read completely once a week."""

TESTED_EVERY = timedelta(days=35)
"""Where no drill of the plan tests a restore: the longest time between the first Mondays of two months."""

UPGRADED = "upgraded:"
"""How the key of an alarm begins that asks for a restore test, once after each proof: what is upgraded later than the
first of it, and before the next proof, is tested with it."""

TEST_GRACE = timedelta(days=5)
"""How long after its time a test may pass before its lack is told, and no longer than the tests are apart."""

SILENT = timedelta(minutes=2)
"""The archiver writes its status every few seconds."""

SETTLED = timedelta(minutes=5)
"""Segments are stored side by side, so a later one may be there first."""

SMALL = 0.5
"""Below this part of the median of those before, a backup is small."""

CLOCKS_APART = timedelta(minutes=5)
"""By as much the clocks of a server and of a worker may differ; a date that lies farther ahead is wrong."""

COMPARED = 7
FEWEST = 3


class Alarm(Frozen):
    """One thing that is wrong. `key` stays the same for as long as it is the same thing."""

    key: str  # "late-dump/superprismora"
    text: str
    hint: str
    wants_base: bool = False  # a new full backup puts it right


def alarms(health: Health) -> tuple[Alarm, ...]:
    """Everything that is wrong at the moment the health was read."""
    if health.problem:
        return (
            Alarm(
                key="unwatched/watch:backups",
                text=f"Nobody watches the backups: how they stand cannot be read. {health.problem}",
                hint="Until it is over no other backup alarm is raised or ended. Look with `/dr doctor`.",
            ),
        )
    found = [alarm for dumps in health.dumps for alarm in _of_dumps(dumps, health.at)]
    found += [alarm for bases in health.bases for alarm in _of_bases(bases, health.at)]
    found += [alarm for mirror in health.mirrors for alarm in _of_mirrors(mirror, health.at)]
    found += [alarm for copies in health.beside for alarm in _of_side_copies(copies)]
    return tuple(found)


def subjects(health: Health) -> frozenset[str]:
    """What the alarms are about of which something is known now: the rest of a key behind its slash. What did not
    answer says nothing of its other alarms, which are left as they are."""
    known = {dumps.key for dumps in health.dumps if not dumps.problem}
    known |= {mirror.subject for mirror in health.mirrors if not mirror.problem}
    looked = [copies for copies in health.beside if copies.looked and not copies.partly]
    known |= {copies.subject for copies in looked if not copies.problem}
    answered = [
        bases for bases in health.bases if not bases.problem and not any(each.problem for each in bases.windows)
    ]
    return frozenset(known | {bases.subject for bases in answered})


def sizes(bytes_newest_first: Sequence[int]) -> float | None:
    """The newest as a part of the median of those before it; None while there are too few to compare with."""
    before = bytes_newest_first[1 : 1 + COMPARED]
    if len(before) < FEWEST or not median(before):
        return None
    return bytes_newest_first[0] / median(before)


# ---------------------------------------------------------------- dumps


def _of_dumps(dumps: Dumps, now: datetime) -> Iterator[Alarm]:
    key, again = dumps.key, f"Make one now: `/dr-backup run {dumps.key}`."
    if dumps.problem:
        yield _unreadable(key, f"dumps of `{key}`", dumps.problem)
        return
    spoiled = {entry.manifest.id: entry.problem for entry in dumps.entries if entry.problem is not None}
    yield from _unusable(f"unusable-dump/{key}", f"dump of `{key}`", spoiled)
    fit = usable_entries(dumps.entries, before=None)
    if not fit:
        yield Alarm(key=f"late-dump/{key}", text=f"Database `{key}` has no usable dump.", hint=again)
        return
    newest = fit[0].manifest
    yield from _ahead(f"future-dump/{key}", f"dump `{newest.id}` of `{key}`", newest.snapshot_at, now)
    # Not by its two dates: of one that was adopted they are months apart, and no dump would ever be late.
    took = timedelta(milliseconds=newest.duration_ms)
    due = Schedule(dumps.policy.schedule).until(now - DUMP_GRACE - took)
    if due is not None and newest.snapshot_at < due - timedelta(minutes=1):
        yield Alarm(
            key=f"late-dump/{key}",
            text=f"The dump of `{key}` due {moment(due)} is missing; the newest is of {moment(newest.snapshot_at)}.",
            hint=f"Look for its run with `/dr status`. {again}",
        )
    part = sizes([entry.manifest.stored.bytes for entry in fit])
    if part is not None and part < SMALL:
        yield _small(f"small-dump/{key}", f"dump `{newest.id}` of `{key}`", newest.stored.bytes, part)
    yield from _unchecked(
        f"unverified-dump/{key}",
        f"dump of `{key}`",
        [entry.verified_at for entry in fit],
        oldest=fit[-1].manifest.finished_at,
        now=now,
        hint=f"Check one: `/dr-backup verify {key}`.",
    )
    yield from _tests(
        _Tested(
            subject=key,
            what=f"the dumps of `{key}`",
            again=f"`/dr-backup prove {key} --dump newest`",
            proofs=dumps.proofs,
            every=dumps.test_every,
            next_test=dumps.next_test,
            upgrades=dumps.upgrades,
            oldest=fit[-1].manifest.finished_at,
            retention=dumps.policy.retention,
        ),
        now,
    )


# ---------------------------------------------------------------- base backups and WAL


def _of_bases(bases: Bases, now: datetime) -> Iterator[Alarm]:
    server = bases.server
    if bases.problem:
        yield _unreadable(bases.subject, f"base backups of `{server}`", bases.problem)
        return
    spoiled = {entry.manifest.id: entry.problem for entry in bases.entries if entry.problem is not None}
    yield from _unusable(f"unusable-base/{bases.subject}", f"base backup of `{server}`", spoiled)
    for newest in usable_bases(bases.living)[:1]:
        what = f"base backup `{newest.manifest.id}` of `{server}`"
        yield from _ahead(f"future-base/{bases.subject}", what, newest.manifest.finished_at, now)
    yield from _full(bases, now)
    yield from _incremental(bases, now)
    yield from _proofs(bases, now)
    for trouble in copy_trouble(bases.policy, bases.entries, bases.uncopied, now):
        yield Alarm(key=f"{trouble.kind}/{bases.subject}", text=trouble.text, hint=trouble.hint)
    yield from _wal(bases, now)


def _full(bases: Bases, now: datetime) -> Iterator[Alarm]:
    server = bases.server
    again = f"Make one now: `/dr-backup base {server}`."
    fulls = usable_bases(bases.living, kind=BackupKind.FULL)
    if not fulls:
        text = f"Server `{server}` has no usable full base backup: no point in time can be reached."
        yield Alarm(key=f"late-full/{bases.subject}", text=text, hint=again, wants_base=True)
        return
    newest = fulls[0].manifest
    took = newest.finished_at - newest.started_at
    due = Schedule(bases.policy.full_schedule).until(now - FULL_GRACE - took)
    if due is not None and newest.finished_at < due:
        yield Alarm(
            key=f"late-full/{bases.subject}",
            text=f"The full base backup of `{server}` due {moment(due)} is missing; the newest ended "
            f"{moment(newest.finished_at)}.",
            hint=f"Look for its run with `/dr status`. {again}",
        )
    part = sizes([entry.manifest.stored.bytes for entry in fulls])
    if part is not None and part < SMALL:
        yield _small(
            f"small-full/{bases.subject}", f"full backup `{newest.id}` of `{server}`", newest.stored.bytes, part
        )
    yield from _unchecked(
        f"unverified-full/{bases.subject}",
        f"full backup of `{server}`",
        [entry.verified_at for entry in fulls],
        oldest=fulls[-1].manifest.finished_at,
        now=now,
        hint=f"Check one: `/dr-backup check-base {server}`.",
    )


def _incremental(bases: Bases, now: datetime) -> Iterator[Alarm]:
    rhythm = bases.policy.incremental_every
    fit = usable_bases(bases.living)
    if rhythm is None or not fit:
        return
    newest = fit[0].manifest
    # A full one keeps them away while it works; that it takes too long is an alarm of its own.
    until = now if bases.full_since is None else bases.full_since
    if until - newest.finished_at > rhythm * MISSED_INCREMENTALS + (newest.finished_at - newest.started_at):
        yield Alarm(
            key=f"late-incremental/{bases.subject}",
            text=f"No base backup of `{bases.server}` has ended since {moment(newest.finished_at)}; one is due every "
            f"{span(rhythm)}. Nothing is lost by that, but a restore replays more WAL and takes longer.",
            hint=f"Look for its run with `/dr status`, or start one: `/dr-backup base {bases.server} incremental`.",
        )


def _proofs(bases: Bases, now: datetime) -> Iterator[Alarm]:
    fit = usable_bases(bases.entries)
    yield from _tests(
        _Tested(
            subject=bases.subject,
            what=f"`{bases.server}`",
            again=f"`/dr-backup prove {bases.server}`",
            proofs=bases.proofs,
            every=bases.test_every,
            next_test=bases.next_test,
            upgrades=bases.upgrades,
            oldest=fit[-1].manifest.finished_at if fit else now,
            retention=bases.policy.full_retention,
        ),
        now,
    )


def _wal(bases: Bases, now: datetime) -> Iterator[Alarm]:
    server, archiver = bases.server, bases.archiver
    yield from _gaps(bases, now)
    if dark := [window for window in bases.windows if window.problem]:
        buckets, said = names(each.bucket for each in dark), " ".join(dict.fromkeys(each.problem for each in dark))
        yield Alarm(
            key=f"unknown-window/{bases.subject}",
            text=f"Nobody can tell what {buckets} would give back of `{server}`: {said}",
            hint="Until then a restore needs a bucket that has it whole.",
        )
    elif bases.window is not None and bases.window.oldest is None and not bases.left_behind:
        yield from _unreachable(bases, bases.window, now)
    if bases.left_behind:
        yield Alarm(key=f"left-behind/{bases.subject}", text=bases.left_behind, hint=moved(bases.policy))
    exposure = bases.exposure(now)
    if exposure is not None and exposure > bases.rpo:
        bucket = "" if bases.window is None else f", measured in bucket `{bases.window.bucket}`"
        yield Alarm(
            key=f"wal-lag/{bases.subject}",
            text=f"`{server}` would lose {span(exposure)} if its region were lost now, more than the RPO of "
            f"{span(bases.rpo)}{bucket}.",
            hint="Look at the archiver (`drbot wal`): its log, its disk, and whether the bucket answers.",
        )
    if archiver is None and not bases.archived:
        return
    if bases.unheard:
        yield Alarm(
            key=f"archiver-unheard/{bases.subject}",
            text=f"What the archiver of `{server}` says of itself cannot be read: {bases.unheard}",
            hint="Look at the bucket of `open_store`, or the last one of `wal`, and at the archiver's own log.",
        )
        return
    if archiver is None or now - archiver.said_at > SILENT:
        since = "never said anything" if archiver is None else f"said nothing since {moment(archiver.said_at)}"
        yield Alarm(
            key=f"archiver-silent/{bases.subject}",
            text=f"The archiver of `{server}` has {since}.",
            hint=f"Start it: `drbot wal`. Until then its slot keeps WAL on `{server}`, which fills its disk.",
        )
        return  # what it said of itself then is no news
    for kind, text in sorted(archiver.trouble.items()):
        key = f"archiver-{kind.replace('_', '-')}/{bases.subject}"
        yield Alarm(key=key, text=text, hint="Its log says more.")


def _unreachable(bases: Bases, window: RecoveryWindow, now: datetime) -> Iterator[Alarm]:
    """Base backups are there, and not the WAL that each of them needs for itself: no gap shows, and nothing lags."""
    beside = [entry for entry in usable_bases(bases.living) if entry.manifest.id not in window.elsewhere]
    ready = [entry for entry in beside if now - entry.manifest.finished_at >= SETTLED]
    if ready:
        yield Alarm(
            key=f"no-window/{bases.subject}",
            text=f"Bucket `{window.bucket}` leads `{bases.server}` back to no moment at all: it does not have the WAL "
            f"of {counted(len(ready), 'usable base backup')}, nor of any other.",
            hint="Find out what has removed it (`/dr buckets` shows rules that delete), look at the archiver, make a "
            f"new full backup: `/dr-backup base {bases.server}`.",
        )


def _gaps(bases: Bases, now: datetime) -> Iterator[Alarm]:
    """A gap counts until a base backup lies behind it, and from the moment on when it is no longer a segment that is
    being stored while a later one was quicker."""
    fit = usable_bases(bases.living)
    ours = [entry for entry in fit if entry.manifest.system_id == fit[0].manifest.system_id]
    wanted = "" if bases.archiver is None else bases.archiver.wants_base
    open_gaps = [
        gap
        for window in bases.windows
        for gap in window.gaps
        if not any(passed(gap, entry) for entry in ours)
        if (seen := gap.seen_at or gap.before) is None or now - seen >= SETTLED
    ]
    if not open_gaps and not wanted:
        return
    segments = ", ".join(f"`{gap.first}` to `{gap.last}`" for gap in open_gaps[:3])
    missing = f"{counted(len(open_gaps), 'gap')}: {segments}" if open_gaps else wanted
    yield Alarm(
        key=f"wal-gap/{bases.subject}",
        text=f"The archived WAL of `{bases.server}` has a gap ({missing}). What was committed after it cannot be "
        "reached from the base backups before it.",
        hint=f"A new full backup is asked for; start it by hand if it does not come: `/dr-backup base {bases.server}`.",
        wants_base=True,
    )


# ---------------------------------------------------------------- restore tests


@dataclass(frozen=True)
class _Tested:
    """What restore tests are about, and what is known of them."""

    subject: str
    what: str
    again: str  # the command
    proofs: Sequence[Proof]
    every: timedelta | None
    next_test: datetime | None
    upgrades: Upgrades
    oldest: datetime  # of the usable backups: since when there was something to test
    retention: timedelta


def unproven_after(every: timedelta | None) -> timedelta:
    """How long after the last proof its lack is told: the longest time between two tests by the plan's own schedule,
    and a grace of as long, five days at most."""
    rhythm = TESTED_EVERY if every is None else every
    return rhythm + min(rhythm, TEST_GRACE)


def of_restore_tests(alarm: Alarm) -> bool:
    """Whether it is about proofs: one that failed, is missing, or is of something that was upgraded since."""
    return alarm.key.startswith(("failed-proof/", "unproven/", UPGRADED))


def _tests(tested: _Tested, now: datetime) -> Iterator[Alarm]:
    what, again = tested.what, f"Test one now: {tested.again}."
    if tested.proofs and tested.proofs[0].problem is not None:
        failed = tested.proofs[0]
        text = f"The restore test of {what} of {moment(failed.proven_at)} failed: {failed.problem}"
        yield Alarm(key=f"failed-proof/{tested.subject}", text=text, hint=again)
    passed = next((proof for proof in tested.proofs if proof.problem is None), None)
    since, limit = (tested.oldest if passed is None else passed.proven_at), unproven_after(tested.every)
    if passed is None:  # nothing is ever older than the policy lets it become
        limit = min(limit, max(timedelta(days=1), tested.retention - timedelta(days=1)))
    if now - since > limit:
        long = "yet" if passed is None else f"for {span(now - since)}"
        rhythm = "no drill of the plan tests one"
        if tested.every is not None:
            rhythm = f"the plan tests one every {span(tested.every)}"
        text = f"No restore of {what} has been proven {long}; {rhythm}."
        yield Alarm(key=f"unproven/{tested.subject}", text=text, hint=again)
    if tested.upgrades.found and passed is not None:
        by_itself = "It is tested by itself at the time of day of the plan's own restore tests"
        yield Alarm(
            key=f"{UPGRADED}{passed.id}/{tested.subject}",
            text=f"Upgraded since the newest proven restore of {what}: {words(tested.upgrades)}. An upgrade can break "
            "the restore without breaking the backup.",
            hint=again if tested.next_test is None else f"{by_itself}, or now: {tested.again}.",
        )


# ---------------------------------------------------------------- mirrors of manifests


def _of_mirrors(mirror: Mirror, now: datetime) -> Iterator[Alarm]:
    for trouble in mirror_trouble(mirror, now):
        yield Alarm(key=f"{trouble.kind}/{mirror.subject}", text=trouble.text, hint=trouble.hint)


def _of_side_copies(copies: SideCopies) -> Iterator[Alarm]:
    if copies.problem:
        yield _unreadable(copies.subject, copies.what, copies.problem)
    for trouble in copies.troubles:
        yield Alarm(key=f"{trouble.kind}/{copies.subject}", text=trouble.text, hint=trouble.hint)


# ---------------------------------------------------------------- words


def _unreadable(subject: str, what: str, problem: str) -> Alarm:
    return Alarm(
        key=f"unreadable/{subject}",
        text=f"The {what} cannot be read: {problem}",
        hint="Look with `/dr doctor` what does not answer.",
    )


def _ahead(key: str, what: str, at: datetime, now: datetime) -> Iterator[Alarm]:
    """No later one would ever be the newest, nor late; and a restore would take it, and say that nothing is lost."""
    if at > now + CLOCKS_APART:
        yield Alarm(
            key=key,
            text=f"The newest {what} is dated {moment(at)}, which is still to come: while it is the newest, nobody can "
            "tell whether others are late, and a restore recommends it.",
            hint="Set the clock of the server, or of this worker, right. Where that dump or backup has the wrong date, "
            "delete it once there are others: `/dr-backup delete`.",
        )


def _unusable(key: str, what: str, spoiled: Mapping[str, str]) -> Iterator[Alarm]:
    """What was stored and is not there any more as it was: damage, or somebody in the bucket."""
    if not spoiled:
        return
    first = sorted(spoiled)[0]
    more = f" So must {counted(len(spoiled) - 1, 'other')}." if len(spoiled) > 1 else ""
    yield Alarm(
        key=key,
        text=f"A {what} must not be used, `{first}`: {spoiled[first]}{more}",
        hint="`/dr-backup status` lists them. Find out what has changed the bucket; make a new one, and delete what is "
        "spoiled with `/dr-backup delete`.",
    )


def _small(key: str, what: str, stored: int, part: float) -> Alarm:
    return Alarm(
        key=key,
        text=f"The newest {what} has {size(stored)}, {round(part * 100)} % of what is usual.",
        hint="Compare the row counts of the database with yesterday's before anything older expires.",
    )


def _unchecked(
    key: str, what: str, checked: Sequence[datetime | None], *, oldest: datetime, now: datetime, hint: str
) -> Iterator[Alarm]:
    done = [at for at in checked if at is not None]
    since = max(done) if done else oldest
    if now - since > UNCHECKED:
        ago = f"for {span(now - since)}" if done else "yet"
        yield Alarm(key=key, text=f"No {what} has been read completely {ago}.", hint=hint)
