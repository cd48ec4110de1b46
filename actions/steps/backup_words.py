"""The state of backups as people read it: a picture of the recovery window, sentences, rows of a table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from actions.backup.physical import BackupKind, PhysicalEntry, Proof, RecoveryWindow
from actions.backup.windows import Stretch, ends_of, reachable
from actions.schedules import Schedule, every
from actions.steps.alarms import sizes
from actions.steps.base_choice import usable_bases
from actions.steps.base_copies import copy_words
from actions.steps.choice import checked_words, loss, rpo_words, usable_entries
from actions.steps.health import Bases, Dumps
from actions.steps.phrases import counted, moment, size, span

CELLS = 40
THERE, NOT_THERE = "█", "░"

COLUMNS = ("of", "copy", "newest", "age", "size", "trend", "checked", "next")
Row = tuple[str, ...]


def bar(stretches: Sequence[Stretch], *, cells: int = CELLS) -> str:
    """From the oldest to the newest moment that can be reached. A cell is full only where all of it can be reached, so
    that no gap is too short to be seen."""
    if not stretches:
        return NOT_THERE * cells
    start, end = stretches[0].start, stretches[-1].end
    cell = (end - start) / cells
    drawn = ""
    for number in range(cells):
        left, right = start + cell * number, start + cell * (number + 1)
        # The ends of the picture are moments of the window, whatever rounding makes of them.
        right = min(right, end) if number < cells - 1 else end
        whole = any(stretch.start <= left and right <= stretch.end for stretch in stretches)
        drawn += THERE if whole else NOT_THERE
    return drawn


def window_words(bases: Bases, now: datetime) -> str:
    """Two to four lines of one server: what would be lost now, the picture, what can be reached, what lies where."""
    copies = copy_words(bases.policy, bases.entries, bases.uncopied)
    return "\n".join([*_window_lines(bases, now), *([copies] if copies and not bases.problem else [])])


def _window_lines(bases: Bases, now: datetime) -> list[str]:
    lines = [exposure_words(bases, now)]
    window = bases.window
    stretches = () if window is None else reachable(window, ends_of(bases.entries, window))
    if window is not None and window.problem:
        return lines
    if not stretches:
        return [*lines, "No point in time can be reached from base backups and WAL."]
    oldest, newest = stretches[0].start, stretches[-1].end
    lines.append(f"`▕{bar(stretches)}▏` {_second(oldest)} to {_second(newest)}")
    gaps = [f"not from {_second(before.end)} to {_second(after.start)}" for before, after in pairwise(stretches)]
    but = f", but {'; '.join(gaps[:3])} ({counted(len(gaps), 'gap')} in the WAL)" if gaps else ", without a gap"
    if gaps and window is not None and any(gap.loose for gap in window.gaps):
        but += ", by when segments were stored: what they say themselves could not be read, and it may be earlier"
    lines.append(
        f"Every moment in it can be reached{but}.{_unled(window)}{_older(bases, oldest)}{_other_copies(bases, newest)}"
    )
    return lines


def _unled(window: RecoveryWindow | None) -> str:
    """Timelines that are archived without their history; they have no place in the picture."""
    undated = [gap for gap in window.gaps if gap.after is None and gap.before is None] if window is not None else []
    if not undated:
        return ""
    ids = ", ".join(str(gap.timeline_id) for gap in undated[:3])
    return f" Of timeline id {ids} WAL is archived without `{undated[0].first}`: no backup from before it leads there."


def exposure_words(bases: Bases, now: datetime) -> str:
    """What would be lost if the region were lost now."""
    names = ", ".join(f"`{name}`" for name in bases.databases) or f"`{bases.server}`"
    if bases.problem:
        return f"{names} on `{bases.server}`: the base backups cannot be read now. {bases.problem}"
    exposure = bases.exposure(now)
    if bases.window is not None and bases.window.problem:
        return (
            f"{names} on `{bases.server}`: nobody can tell what bucket `{bases.window.bucket}`"
            f"{', which outlives the region,' if bases.apart else ''} would give back. {bases.window.problem}"
        )
    if exposure is None or bases.window is None:
        return (
            f"{names} on `{bases.server}`: everything since the newest dump would be lost. {bases.left_behind}".rstrip()
        )
    lost = f"{span(exposure)} would be lost now ({rpo_words(exposure, bases.rpo)})"
    outlives = ", which outlives the region" if bases.apart else ""
    idle = " The server has committed nothing since." if bases.idle else ""
    return f"{names} on `{bases.server}`: {lost}, measured in bucket `{bases.window.bucket}`{outlives}.{idle}"


def dump_words(dumps: Dumps, now: datetime) -> str:
    """One line of a database that has nothing but dumps."""
    if dumps.problem:
        return f"`{dumps.key}`: its dumps cannot be read now. {dumps.problem}"
    fit = usable_entries(dumps.entries, before=None)
    if not fit:
        return f"`{dumps.key}`: everything would be lost, it has no usable backup."
    lost = loss(fit[0], now)
    words = rpo_words(lost, dumps.database.rpo)
    return f"`{dumps.key}`: {span(lost)} would be lost now ({words}); it has dumps alone, so no point in time."


def dump_row(dumps: Dumps, now: datetime) -> Row:
    """The newest usable dump."""
    following = _short(Schedule(dumps.policy.schedule).after(now), now)
    fit = usable_entries(dumps.entries, before=None)
    if not fit:
        return (dumps.key, "dump", "none", "", "", "", "", following)
    manifest = fit[0].manifest
    return (
        dumps.key,
        "dump",
        moment(manifest.snapshot_at),
        span(loss(fit[0], now)),
        size(manifest.stored.bytes),
        trend([entry.manifest.stored.bytes for entry in fit]),
        checked_words(fit[0]),
        following,
    )


def dump_rows(dumps: Dumps, now: datetime) -> tuple[Row, ...]:
    """The newest usable dump, and the newest test that loaded one."""
    if dumps.problem:
        return (dump_row(dumps, now),)
    return dump_row(dumps, now), _proof_row(dumps.key, "dump test", dumps.proofs, dumps.next_test, now)


def base_rows(bases: Bases, now: datetime) -> tuple[Row, ...]:
    """The newest full and incremental backups and the newest restore test of a server."""
    rhythm = bases.policy.incremental_every
    rows = [_base_row(bases, BackupKind.FULL, Schedule(bases.policy.full_schedule).after(now), now)]
    if rhythm is not None:
        rows.append(_base_row(bases, BackupKind.INCREMENTAL, every(rhythm, now) + rhythm, now))
    return (*rows, _proof_row(bases.server, "restore test", bases.proofs, bases.next_test, now))


def trend(bytes_newest_first: Sequence[int]) -> str:
    """The newest against the median of those before it: `+3 %`; empty while there are too few."""
    part = sizes(bytes_newest_first)
    return "" if part is None else f"{round((part - 1) * 100):+d} %"


def _base_row(bases: Bases, kind: BackupKind, following: datetime, now: datetime) -> Row:
    fit = usable_bases(bases.entries, kind=kind)
    if not fit:
        return (bases.server, str(kind), "none", "", "", "", "", _short(following, now))
    manifest = fit[0].manifest
    return (
        bases.server,
        str(kind),
        moment(manifest.finished_at),
        span(now - manifest.finished_at),
        size(manifest.stored.bytes),
        trend([entry.manifest.stored.bytes for entry in fit]),
        _checked(fit[0]),
        _short(following, now),
    )


def _checked(entry: PhysicalEntry) -> str:
    words = "not yet verified" if entry.verified_at is None else f"verified {moment(entry.verified_at)}"
    return f"{words}, pinned" if entry.pinned else words


def _proof_row(of: str, kind: str, proofs: Sequence[Proof], next_test: datetime | None, now: datetime) -> Row:
    passed = [proof for proof in proofs if proof.problem is None]
    following = _next_test(next_test, now)
    if not proofs:
        return (of, kind, "never", "", "", "", "", following)
    newest = proofs[0]
    at, age = moment(newest.proven_at), span(now - newest.proven_at)
    if newest.problem is not None:
        good = f"last passed {moment(passed[0].proven_at)}" if passed else "none has passed"
        return (of, kind, at, age, "", "", f"FAILED, {good}", following)
    took = sizes([round(proof.rto.total_seconds() * 1000) for proof in passed])
    slower = "" if took is None else f"{round((took - 1) * 100):+d} % time"
    words = f"passed: RTO {span(newest.rto)}, RPO {span(newest.rpo)}"
    return (of, kind, at, age, size(newest.bytes), slower, words, following)


def _next_test(next_test: datetime | None, now: datetime) -> str:
    if next_test is None:
        return "in no drill"
    return "due now" if next_test <= now else _short(next_test, now)


def _older(bases: Bases, oldest: datetime) -> str:
    """Base backups that outlived their WAL."""
    alone = [at for at in ends_of(bases.entries, bases.window) if at < oldest]
    if not alone:
        return ""
    return f" {counted(len(alone), 'older base backup')} can be restored as well, each to its own end alone."


def _other_copies(bases: Bases, newest: datetime) -> str:
    ahead = [window for window in bases.windows[1:] if window.newest is not None and window.newest > newest]
    if not ahead or ahead[0].newest is None:
        return ""
    return f" Bucket `{ahead[0].bucket}` reaches {_second(ahead[0].newest)}."


def _second(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _short(at: datetime, now: datetime) -> str:
    """`10:15 UTC`, with its day where that is another one."""
    if at - now < timedelta(days=1) and at.date() == now.date():
        return f"{at.astimezone(UTC):%H:%M} UTC"
    return f"{at.astimezone(UTC):%m-%d %H:%M} UTC"
