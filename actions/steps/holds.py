"""How the store itself keeps what is pinned, in words: for the plan of a pin, for its report, and for the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actions.buckets import Hold
from actions.contract import Finding, Verdict
from actions.ports import Ports
from actions.steps.kept_backups import Sort, what
from actions.steps.phrases import counted, names

UNHELD = "no legal hold by the store: the pin is a signed note that the bot alone obeys"


async def holds_of(ports: Ports, sort: Sort, owner: str, backup: str) -> Sequence[Hold]:
    """One for each bucket; none where the engine sets no holds."""
    if sort is Sort.DUMP:
        return await ports.backups.holds(owner, backup)
    return await ports.physical.holds(owner, backup)


def planned_words(holds: Sequence[Hold], *, on: bool) -> str:
    """What a pin will do about the store."""
    able = [hold for hold in holds if hold.lockable]
    if not able:
        return UNHELD if on else "none"
    objects = " and ".join(f"{counted(hold.objects, 'object')} in `{hold.bucket}`" for hold in able)
    return f"set on {objects}" if on else f"taken off {objects}, but for what another pin needs"


def planned_findings(holds: Sequence[Hold]) -> tuple[Finding, ...]:
    """What a pin cannot keep from whoever has the keys of the buckets."""
    hint = "Where it is evidence, use buckets with Object Lock, and keep a copy elsewhere."
    if not holds:
        return (_warn("legal hold", "The engine of this backup sets no legal hold in its repository.", hint),)
    without = [hold.bucket for hold in holds if not hold.lockable]
    found = [_warn("legal hold", f"{hold.bucket}: {hold.problem}", "Look at it.") for hold in holds if hold.problem]
    if without:
        plural = "have" if len(without) > 1 else "has"
        detail = (
            f"{names(without)} {plural} no Object Lock, so the store holds nothing there: the bot obeys the pin, but "
            "whoever has the bucket's keys can delete the pin and the backup."
        )
        found.insert(0, _warn("legal hold", detail, hint))
    return tuple(found)


def pinned_words(holds: Sequence[Hold], lacking: Sequence[str]) -> str:
    """What came of a pin, bucket by bucket. `lacking`: buckets that have not the newest word about it."""
    told = []
    for hold in holds:
        if hold.problem:
            told.append(f"Whether bucket `{hold.bucket}` holds it is not known: {hold.problem}")
        elif not hold.lockable:
            told.append(f"Bucket `{hold.bucket}` has no Object Lock, so it holds nothing.")
        elif hold.whole:
            told.append(f"Bucket `{hold.bucket}` has {counted(hold.objects, 'object')} of it under legal hold.")
        else:
            told.append(_partly(hold))
    told += [
        f"Bucket `{bucket}` did not take the pin: the next base backup brings it there, `late-copy` tells until then."
        for bucket in lacking
    ]
    return " ".join(told)


def unpinned_words(lacking: Sequence[str]) -> str:
    """The same once a pin is off: only what is still to come."""
    return " ".join(
        f"Bucket `{bucket}` did not take it: there the pin, and its legal hold, stay until the next base backup."
        for bucket in lacking
    )


@dataclass(frozen=True)
class Unheld:
    """One bucket that does not keep what is pinned, though it could. `unseen` says why nobody knows."""

    name: str  # of the backup or the recovery point
    detail: str
    hint: str
    unseen: str = ""


async def unheld(ports: Ports) -> tuple[int, Sequence[Unheld]]:
    """How much is pinned, and what of it a bucket with Object Lock should hold and does not. Raises DrError when what
    is pinned cannot be read."""
    pinned = [
        (Sort.DUMP, name, entry.manifest.id, entry.pinned)
        for name in sorted(ports.site.backups)
        for entry in await ports.backups.catalogue(name)
        if entry.pinned
    ] + [
        (Sort.BASE, name, entry.manifest.id, entry.pinned)
        for name in sorted(ports.site.physical)
        for entry in await ports.physical.catalogue(name)
        if entry.pinned
    ]
    found: list[Unheld] = []
    for sort, owner, backup, why in pinned:
        again = f"/dr-backup pin {owner} {backup} {why}"
        found += _unheld(backup, what(sort, owner, backup), await holds_of(ports, sort, owner, backup), again)
    points = [] if ports.site.points is None else [entry for entry in await ports.points.entries() if entry.pinned]
    for entry in points:
        name = entry.point.id
        again = f"/dr point pin {name} {entry.pinned}"
        found += _unheld(name, f"recovery point `{name}`", await ports.points.holds(name), again)
    return len(pinned) + len(points), found


def _unheld(name: str, thing: str, holds: Sequence[Hold], again: str) -> list[Unheld]:
    told = [(f"It cannot be seen: {hold.problem}" if hold.problem else _partly(hold), hold) for hold in holds]
    hint = f"`{again}` sets it again."
    return [
        Unheld(name, f"The {thing} is pinned. {words}", hint, hold.problem) for words, hold in told if not hold.whole
    ]


async def hold_findings(ports: Ports) -> list[Finding]:
    """For the doctor."""
    pinned, found = await unheld(ports)
    said = f"{pinned}, each held by its store as far as that can"
    return [_warn(f"pin of {each.name}", each.detail, each.hint) for each in found] or [
        Finding(check="pins", verdict=Verdict.OK, detail=said)
    ]


async def lacking(ports: Ports, sort: Sort, owner: str, backup: str) -> Sequence[str]:
    """The buckets that have not the newest word about it."""
    if sort is Sort.DUMP:
        return ()
    left = await ports.physical.uncopied(owner)
    return sorted({*left.backups.get(backup, ()), *left.silent})


def _partly(hold: Hold) -> str:
    free = hold.objects - hold.held
    return (
        f"Bucket `{hold.bucket}` holds {hold.held} of {counted(hold.objects, 'object')}: the others are not there, or "
        f"its key may not set a legal hold (`s3:PutObjectLegalHold`), and {free} can be deleted by whoever has keys."
    )


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)
