"""What can be reached, and how much would be lost now. Pure: windows and moments in, stretches and sentences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from actions.backup.physical import DeadEnd, PhysicalEntry, RecoveryWindow


@dataclass(frozen=True)
class Stretch:
    """Every moment from `start` to `end` can be reached."""

    start: datetime
    end: datetime


def reachable(window: RecoveryWindow, bases: Iterable[datetime]) -> tuple[Stretch, ...]:
    """The stretches of a window, oldest first: from the end of each base backup until the WAL has a gap. `bases` are
    the moments at which usable base backups ended."""
    if window.oldest is None or window.newest is None:
        return ()
    starts = sorted({base for base in bases if window.oldest <= base <= window.newest} | {window.oldest})
    # Of a gap of which nobody knows where it begins, nothing between it and the base backup before it is promised.
    holes = [
        (gap.after or max((start for start in starts if start < gap.before), default=window.oldest), gap.before)
        for gap in window.gaps
        if gap.before is not None
    ] + [(gap.after, gap.after) for gap in window.gaps if gap.before is None and gap.after is not None]
    found: list[Stretch] = []
    for start in starts:
        end = min((after for after, _ in holes if after >= start), default=window.newest)
        if any(after < start < before for after, before in holes):
            continue  # a base backup within a gap lacks the WAL to become consistent
        if found and start <= found[-1].end:
            found[-1] = Stretch(found[-1].start, max(found[-1].end, end))
        else:
            found.append(Stretch(start, end))
    return tuple(found)


def dead_ends(windows: Iterable[RecoveryWindow]) -> Mapping[str, DeadEnd]:
    """The base backups of a branch that the server has left, by any bucket."""
    return {name: end for window in windows for name, end in window.dead_ends.items()}


def ends_of(entries: Sequence[PhysicalEntry], window: RecoveryWindow | None = None) -> tuple[datetime, ...]:
    """When the usable base backups ended; of those that lead to moments of the window, where one is given."""
    passed = () if window is None else (*window.dead_ends, *window.elsewhere)
    fit = [entry.manifest for entry in entries if entry.problem is None and entry.manifest.id not in passed]
    return tuple(manifest.finished_at for manifest in fit)


def a_moment(stretches: Sequence[Stretch], seed: str) -> datetime | None:
    """A moment of the window, each as likely as any other; the same for the same seed. None where nothing can be
    reached."""
    total = sum((stretch.end - stretch.start for stretch in stretches), timedelta(0))
    if not stretches:
        return None
    # Not a secret: that anybody could work out which moment is tested does no harm.
    into = total * Random(seed).random()  # noqa: S311
    for stretch in stretches:
        length = stretch.end - stretch.start
        if into <= length:
            return stretch.start + into
        into -= length
    return stretches[-1].end
