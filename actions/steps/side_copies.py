"""What is kept beside the backups of databases: files in another region, sealing keys in escrow and recovery points,
whether they are late, the way back without the bot, whether it is there, and pins, whether the store keeps them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from actions.buckets import FilesCopy
from actions.errors import DrError
from actions.points import ImagePart, RecoveryPoint
from actions.ports import Ports
from actions.schedules import Schedule
from actions.site import EscrowPolicy, FilesPolicy, PointsPolicy, Site
from actions.steps.holds import Unheld, unheld
from actions.steps.mirrors import Trouble
from actions.steps.phrases import counted, moment, size, span
from actions.steps.replicas import HINT as REPLICA_HINT
from actions.steps.replicas import replica_faults, replicas, replicated
from actions.steps.restore_kit import KIT_HINT, KitState, kit_places, kit_states, kit_trouble, kit_words

T = TypeVar("T")

GRACE = timedelta(hours=2)
"""How long after its instant one may be made before it is late; as long again as the last one took is added."""

MISSED_POINTS = 2
"""A recovery point is late once this many could have been recorded."""

FEW = 0.5
"""Below this part of what an earlier copy holds, a copy of files holds few."""

COPY_IT = "Copy it there by digest, and see that the plan's `mirrors` fit."


@dataclass(frozen=True)
class SideCopies:
    """One kind of them. `problem` says why they could not be read; what was not looked at is as it was."""

    subject: str  # what its alarms are about; never the same as a database's or a server's
    what: str
    troubles: Sequence[Trouble] = ()
    problem: str = ""
    looked: bool = True
    partly: bool = False  # not all of it was looked at, for a reason that is told elsewhere: nothing of it is over
    told: str = ""  # what is good about it, where that is told
    covers: tuple[str, ...] = ()  # of a whole part: how the subjects begin of which nothing is known while it fails


async def by_itself(part: SideCopies, read: Awaitable[Sequence[T]]) -> tuple[Sequence[T], SideCopies]:
    """What was read of one part, and the part itself: where reading it fails as a whole that is its `problem`, and the
    others are told all the same."""
    try:
        return await read, part
    except DrError as error:
        return (), replace(part, problem=str(error))


async def side_copies(ports: Ports, *, look: bool) -> Sequence[SideCopies]:
    """All of the plan, by name. Raises nothing: what fails is told by its `problem`."""
    site = ports.site
    found = [_files(ports, policy, look=look) for _, policy in sorted(site.files.items()) if policy.copy_bucket]
    if site.escrow is not None:
        sealed = sorted(name for name, cluster in site.clusters.items() if cluster.sealed_secrets)
        found += [_keys(ports, site.escrow, name, look=look) for name in sealed]
    if site.points is not None:
        found.append(_points(ports, site.points, look=look))
    if site.images is not None:
        found.append(_images(ports, look=look))
    found.append(_pins(ports, look=look))
    whole = SideCopies("part:kits", "ways back without the bot", looked=look, covers=("kit:",))
    kits, part = await by_itself(whole, _kits(ports, look=look))
    return [*await asyncio.gather(*found), *kits, part]


async def _kits(ports: Ports, *, look: bool) -> Sequence[SideCopies]:
    found = await kit_states(ports) if look else [KitState(place) for place in kit_places(ports.site)]
    return [_kit(state, looked=look) for state in found]


def _kit(state: KitState, *, looked: bool) -> SideCopies:
    found = SideCopies(f"kit:{state.place}", f"way back without the bot in `{state.place}`", looked=looked)
    if state.silent:
        return replace(found, problem=state.problem)
    if state.problem:
        return replace(found, troubles=(Trouble("restore-kit", kit_trouble(state), KIT_HINT),))
    return replace(found, told=kit_words(state)) if looked else found


async def replica_copies(ports: Ports, *, look: bool) -> Sequence[SideCopies]:
    """What the store itself copies into a bucket of another region. Raises nothing."""
    if not replicated(ports.site):
        return ()
    whole = SideCopies("part:replicas", "replicas of buckets", looked=look, covers=("replica:",))
    found, part = await by_itself(whole, _replicas(ports, look=look))
    return [*found, part]


async def _replicas(ports: Ports, *, look: bool) -> Sequence[SideCopies]:
    if not look:
        return [_replica(name, looked=False) for name in replicated(ports.site)]
    found = []
    for each in await replicas(ports, markers=False):
        faults = " ".join(replica_faults(ports.site, each))
        troubles = (Trouble("replica", faults, REPLICA_HINT),) if faults else ()
        found.append(replace(_replica(each.bucket), troubles=troubles, problem=each.problem))
    return found


def _replica(bucket: str, *, looked: bool = True) -> SideCopies:
    return SideCopies(f"replica:{bucket}", f"replica of bucket `{bucket}`", looked=looked)


async def _files(ports: Ports, policy: FilesPolicy, *, look: bool) -> SideCopies:
    found = SideCopies(f"files:{policy.name}", f"copies of files `{policy.name}`", looked=look)
    if not look:
        return found
    try:
        copies = await ports.files.copies(policy.name)
        late, few = late_files(policy, copies, ports.clock.now()), few_files(policy, copies)
        return replace(found, troubles=(*_some(late), *_some(few)))
    except DrError as error:
        return replace(found, problem=str(error))


async def _keys(ports: Ports, policy: EscrowPolicy, cluster: str, *, look: bool) -> SideCopies:
    found = SideCopies(f"escrow:{cluster}", f"escrow of cluster `{cluster}`", looked=look)
    if not look:
        return found
    try:
        entries = await ports.escrow.entries(cluster)
        newest = max((entry.manifest.made_at for entry in entries if entry.problem is None), default=None)
        return replace(found, troubles=_some(_late_escrow(policy, cluster, newest, ports.clock.now())))
    except DrError as error:
        return replace(found, problem=str(error))


async def _points(ports: Ports, policy: PointsPolicy, *, look: bool) -> SideCopies:
    """By the newest alone: there may be thousands."""
    found = SideCopies("points:site", "recovery points", looked=look)
    if not look:
        return found
    try:
        newest = await ports.points.newest()
    except DrError as error:
        return replace(found, problem=str(error))
    taken = None if newest is None else newest.taken_at
    troubles = (*_some(late_point(policy, taken, ports.clock.now())), *_some(poor_point(ports.site, newest)))
    return replace(found, troubles=troubles)


async def _pins(ports: Ports, *, look: bool) -> SideCopies:
    """Whether the stores hold what is pinned. What a bucket that does not answer holds is not over."""
    found = SideCopies("pins:site", "legal holds of what is pinned", looked=look)
    if not look:
        return found
    try:
        _, free = await unheld(ports)
    except DrError as error:
        return replace(found, problem=str(error))
    by_name: dict[str, list[Unheld]] = {}
    for each in free:
        if not each.unseen:
            by_name.setdefault(each.name, []).append(each)
    silent = [each.unseen for each in free if each.unseen]
    return replace(
        found,
        troubles=[
            Trouble(f"unheld-pin:{name}", " ".join(dict.fromkeys(each.detail for each in several)), several[0].hint)
            for name, several in by_name.items()
        ],
        problem=silent[0] if silent else "",
    )


async def _images(ports: Ports, *, look: bool) -> SideCopies:
    """What runs and what mirrored manifests name, in the registry of the recovery region."""
    found = SideCopies("images:site", "images of the recovery region", looked=look)
    if not look:
        return found
    try:
        images = await ports.points.images()
    except DrError as error:
        return replace(found, problem=str(error))
    silent = [each.problem for each in images if each.unread and each.repository]
    return replace(
        found,
        troubles=[missing_image(each) for each in images if each.problem and not each.held and not each.unread],
        problem=silent[0] if silent else "",
        partly=any(each.unread for each in images),  # a mirror that cannot be read is an alarm of its own
    )


def missing_image(part: ImagePart) -> Trouble:
    """One that a cluster of the recovery region could not start. Its alarm is of this very image."""
    name = hashlib.sha256(part.image.encode()).hexdigest()[:12]
    text = f"{part.problem} A cluster there does not start what needs it."
    return Trouble(f"missing-image:{name}", text, COPY_IT)


def _some(trouble: Trouble | None) -> tuple[Trouble, ...]:
    return () if trouble is None else (trouble,)


def late_point(policy: PointsPolicy, newest: datetime | None, now: datetime) -> Trouble | None:
    """None while the newest usable recovery point is young enough."""
    again = "Look whether the worker reaches the cluster and the bucket, then `/dr point record`."
    if newest is None:
        text = "There is no usable recovery point, so nothing says which files, images and commit belong to a moment."
        return Trouble("late-point", text, again)
    age = now - newest
    if age <= MISSED_POINTS * policy.every:
        return None
    text = (
        f"The newest usable recovery point is {span(age)} old (of {moment(newest)}); one is due every "
        f"{span(policy.every)}."
    )
    return Trouble("late-point", text, again)


def poor_point(site: Site, newest: RecoveryPoint | None) -> Trouble | None:
    """The newest point is there, and yet what matters most is not in it: every hour another such one is recorded."""
    if newest is None:
        return None
    backed_up = [
        name for name, each in sorted(site.databases.items()) if name in site.backups or each.server in site.physical
    ]
    held = {part.database for part in newest.databases}
    lacking = [f"database `{name}`" for name in backed_up if name not in held]
    if site.escrow is not None and site.escrow.secrets:
        sealed = {part.cluster for part in newest.sealed}
        lacking += [f"the sealed Secrets of `{name}`" for name in site.service_clusters if name not in sealed]
    if not lacking:
        return None
    text = f"The newest recovery point `{newest.id}` lacks {' and '.join(lacking)}: it could not bring them back."
    return Trouble("poor-point", text, f"`/dr point list {newest.id}` says why.")


def late_files(policy: FilesPolicy, copies: Sequence[FilesCopy], now: datetime) -> Trouble | None:
    """None while the newest usable copy is the one that was due last."""
    usable = [copy.manifest for copy in copies if copy.problem is None]
    if not usable:
        text = f"`{policy.component}` has no usable copy in `{policy.copy_bucket}`."
        return Trouble("late-files", text, f"Make one now: `/dr files copy {policy.name}`.")
    newest = max(usable, key=lambda manifest: manifest.state_of)
    due = _missed(policy.schedule, newest.state_of, now - (newest.finished_at - newest.state_of))
    if due is None:
        return None
    text = f"The copy of `{policy.component}` due {moment(due)} is missing; the newest is of {moment(newest.state_of)}."
    return Trouble("late-files", text, f"Look at its last run, then `/dr files copy {policy.name}`.")


def few_files(policy: FilesPolicy, copies: Sequence[FilesCopy]) -> Trouble | None:
    """The newest copy holds much less than one before it: the bucket was emptied, and what it held is in copies alone,
    whose time will be over. It is told for as long as such a copy is there."""
    usable = [copy.manifest for copy in copies if copy.problem is None]
    if not usable:
        return None
    newest = usable[0]
    most = max(usable, key=lambda manifest: manifest.objects)
    if newest.objects >= FEW * most.objects:
        most = max(usable, key=lambda manifest: manifest.bytes)
        if newest.bytes >= FEW * most.bytes:
            return None
    there, then = (f"{counted(each.objects, 'file')} ({size(each.bytes)})" for each in (newest, most))
    until = "before that copy is over its time" if newest.objects else "that copy stays whatever its age"
    return Trouble(
        "small-files",
        f"The newest copy of `{policy.component}` holds {there}; that of {moment(most.state_of)} holds {then}.",
        f"Look what has removed them. `/dr files restore {policy.name} --from {most.id}` brings them back; {until}.",
    )


def _late_escrow(policy: EscrowPolicy, cluster: str, newest: datetime | None, now: datetime) -> Trouble | None:
    due = None if newest is None else _missed(policy.schedule, newest, now)
    if newest is not None and due is None:
        return None
    since = "never" if newest is None or due is None else f"last {moment(newest)}, and not at {moment(due)}"
    text = (
        f"The sealing keys of cluster `{cluster}` were put into escrow {since}. A key made since is in none: what it "
        "seals, a new cluster could not decrypt."
    )
    return Trouble("late-escrow", text, f"Look at its last run, then `/dr secrets escrow {cluster}`.")


def _missed(schedule: str, newest: datetime, now: datetime) -> datetime | None:
    """The instant that nothing was made at, although there was time."""
    due = Schedule(schedule).until(now - GRACE)
    return due if due is not None and newest < due - timedelta(minutes=1) else None
