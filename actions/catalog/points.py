"""Recovery points: recorded, listed, and read as the runbook that brings one back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from actions.contract import Action, Finding, Lock, Observation, Plan, Query, Report, Risk, Step, Verdict
from actions.errors import DrError, UserError
from actions.points import ImagePart, PointEntry, RecoveryPoint
from actions.ports import Ports
from actions.site import Frozen, Site
from actions.steps.moments import exact
from actions.steps.naming import label
from actions.steps.phrases import counted, moment, names
from actions.steps.point_compare import recorded
from actions.steps.point_secrets import NOBODY, Stand, secrets_now, stands
from actions.steps.points import RecordPoint
from actions.steps.side_copies import COPY_IT, late_point

SHOWN = 20
LACK = 48  # of a sentence in the list, so that a cell in Slack has room for how many more there are
UNREAD = "Images that the manifests name and that run nowhere are not known until then."
UNASKED = "Look whether the registry of the recovery region answers; nobody knows until then what it has."


class RecordParams(Frozen):
    """Takes nothing of people."""

    requested_by: str = ""


class Record(Action[RecordParams]):
    """Record what belongs together now."""

    name: ClassVar[str] = "point.record"
    summary: ClassVar[str] = "Record databases, files, images, commit and secrets that belong together, signed"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = RecordParams
    steps: ClassVar[tuple[type[Step], ...]] = (RecordPoint,)

    async def plan(self, params: RecordParams, ports: Ports, plan_id: str) -> Plan:
        policy = ports.site.points
        if policy is None:
            raise UserError("The plan file says nothing of recovery points. Add `backups.recovery_points`.")
        step = RecordPoint(point=label("point", plan_id), bucket=policy.bucket, requested_by=params.requested_by)
        found = await ports.points.gather(step.point)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=step.summary,
            risk=self.risk,
            target=step.point,
            params=params.model_dump(mode="json"),
            locks=(Lock(key="recovery-points"),),
            steps=(step,),
            made_at=ports.clock.now(),
            findings=tuple(_lack(sentence) for sentence in found.missing),
            observations=(
                Observation(name="databases as of", value=moment(found.moment)),
                Observation(name="images", value=str(len(found.images))),
                Observation(name="commit", value=names(part.revision[:12] for part in found.manifests) or "not known"),
                *await _to_seal(ports),
            ),
        )


async def _to_seal(ports: Ports) -> list[Observation]:
    """How many Secrets are sealed with the point, where the plan file says so."""
    policy = ports.site.escrow
    if policy is None or not policy.secrets:
        return []
    found = []
    for cluster in ports.site.service_clusters:
        try:
            now = await ports.secret_copies.current(cluster)
            value = f"{sum(not each.by for each in now.secrets)} that nothing else brings back"
        except DrError as error:
            value = f"none: {error}"
        found.append(Observation(name=f"secrets of {cluster} that are sealed", value=value))
    return found


class PointsParams(Frozen):
    """One point, read as a runbook; the list without."""

    point: str | None = None


class PointState(Query[PointsParams]):
    """The recovery points, with what each lacks; or one of them as the commands that bring it back, in order."""

    name: ClassVar[str] = "status.points"
    summary: ClassVar[str] = "List the recovery points, or show the commands that bring one back"
    params = PointsParams

    async def read(self, params: PointsParams, ports: Ports) -> Report:
        if params.point is not None:
            point = await recorded(ports, params.point)
            return _runbook(point, ports.site, stands(point, await secrets_now(ports, point)))
        entries = await ports.points.entries()
        # Those that people keep must be found, however old they are.
        shown = [*entries[:SHOWN], *(each for each in entries[SHOWN:] if each.pinned)]
        older = len(entries) - len(shown)
        lines = ["All that one lacks, and how it is brought back: `/dr point list POINT`."] if shown else []
        if older:
            lines.append(
                f"Not shown: {counted(older, 'older one')} that nobody has pinned. Each can be used by its name."
            )
        return Report(
            title=f"{counted(len(entries), 'recovery point')}",
            lines=tuple(lines),
            columns=("point", "databases as of", "files", "images", "commit", "escrow", "lacks", "pinned"),
            rows=tuple(_row(entry) for entry in shown),
            findings=tuple(point_findings(entries, ports)),
        )


def _row(entry: PointEntry) -> tuple[str, ...]:
    point = entry.point
    if entry.problem is not None:
        return (point.id, "", "", "", "", "", f"must not be used: {entry.problem}", entry.pinned)
    held = sum(part.held for part in point.images)
    return (
        point.id,
        moment(point.moment),
        ", ".join(part.name for part in point.files) or "none",
        f"{held} of {len(point.images)}",
        ", ".join(sorted({part.revision[:12] for part in point.manifests})) or "not known",
        ", ".join(part.escrow for part in point.secrets) or "none",
        _lacks(point),
        entry.pinned,
    )


def _lacks(point: RecoveryPoint) -> str:
    """A cell has room for one thing of several."""
    if not point.missing:
        return "nothing"
    first, more = point.missing[0], len(point.missing) - 1
    if not more:
        return first
    return f"{first.rstrip('.') if len(first) <= LACK else f'{first[: LACK - 1]}…'} and {more} more"


def point_findings(entries: Sequence[PointEntry], ports: Ports) -> Iterator[Finding]:
    """Whether there is a point, and a fresh one."""
    policy = ports.site.points
    if policy is None:
        return
    newest = max((entry.point.taken_at for entry in entries if entry.problem is None), default=None)
    trouble = late_point(policy, newest, ports.clock.now())
    if trouble is not None:
        yield Finding(check="recovery points", verdict=Verdict.WARN, detail=trouble.text, hint=trouble.hint)


def _runbook(point: RecoveryPoint, site: Site, secrets: Sequence[Stand]) -> Report:
    lines = [f"Everything as of {exact(point.moment)}, recorded {moment(point.taken_at)}. In this order:"]
    steps = [
        *_keys(point),
        *_versions(point),
        *_sealed(point, secrets),
        *_manifests(point),
        *_images(point, site),
        *_databases(point),
        *_files(point),
        *_start(site),
    ]
    lines += [f"{number}. {text}" for number, text in enumerate(steps, 1)]
    again = f'`/dr-restore recovery-point {point.id} --reason "WHY" --target {point.id}`'
    lines.append(f"Or by one plan, as far as the bot can: {again}.")
    return Report(
        title=f"Recovery point `{point.id}`",
        lines=tuple(lines),
        columns=("secret", "now", "version then", "version now", "comes back by") if secrets else (),
        rows=tuple(_secret_row(each) for each in secrets),
        findings=tuple(_lack(sentence) for sentence in point.missing),
    )


def _secret_row(each: Stand) -> tuple[str, ...]:
    then, now = (version.partition(" of ")[0] for version in (each.then, each.now))
    return (each.name.partition(" ")[2], each.state, then, now, each.by)


def _keys(point: RecoveryPoint) -> Iterator[str]:
    for part in point.secrets:
        yield (
            f"New cluster `{part.cluster}`: a custodian gives it the sealing keys of escrow `{part.escrow}` "
            "(`/dr secrets status` has the commands)."
        )


def _versions(point: RecoveryPoint) -> Iterator[str]:
    if point.versions:
        shown = ", ".join(f"`{each.name}` {each.version.partition(' of ')[0]}" for each in point.versions[:SHOWN])
        more = f" and {len(point.versions) - SHOWN} more" if len(point.versions) > SHOWN else ""
        yield f"Secrets at these versions: {shown}{more}."


def _sealed(point: RecoveryPoint, secrets: Sequence[Stand]) -> Iterator[str]:
    for part in point.sealed:
        if part.copy_id:
            yield (
                f"Secrets of `{part.cluster}` that nothing else brings back: {len(part.secrets)}, in sealed copy "
                f"`{part.copy_id}`. The plan below gives back what is missing; `--secret NAME` adds what has changed."
            )
    nobody = [each.name.partition(" ")[2] for each in secrets if each.by == NOBODY]
    if nobody:
        yield f"Nothing brings these Secrets back but people who know them: {names(nobody)}."


def _manifests(point: RecoveryPoint) -> Iterator[str]:
    for part in point.manifests:
        yield f"Manifests of `{part.cluster}`: commit `{part.revision}` ({part.controller})."


def _images(point: RecoveryPoint, site: Site) -> Iterator[str]:
    held = [part for part in point.images if part.held]
    if held and site.images is not None:
        digests = names(f"{part.repository}@{part.digest}" for part in held)
        yield f"Images from `{site.images.url}`, by digest: {digests}."


def _databases(point: RecoveryPoint) -> Iterator[str]:
    for part in point.databases:
        name = part.database
        why = f'--reason "recovery point {point.id}" --target {name}'
        dump = f"`/dr-restore {name} --from {part.backup} {why}`"
        if part.by_wal:
            again = f'`/dr-restore point {name} --at "{exact(point.moment)}"`'
            left = f" Once its WAL is gone, its dump is left: {dump}." if part.backup else ""
            yield f"Database `{name}`: {again}, look at its report, then give it back as that report says.{left}"
        else:
            yield f"Database `{name}`: {dump} (its dump is of {moment(part.moment)})."


def _files(point: RecoveryPoint) -> Iterator[str]:
    for part in point.files:
        why = f'--reason "recovery point {point.id}" --target {part.bucket}'
        ways = []
        if part.as_of is not None:
            ways.append(f'`/dr files undelete {part.name} "{exact(part.as_of)}" --replace {why}`')
        if part.copy_id and part.copy_of is not None:
            again = f"`/dr files restore {part.name} --from {part.copy_id} {why}`"
            ways.append(f"{again} (of {moment(part.copy_of)})")
        if ways:
            yield f"Files `{part.name}`: {', or with the bucket lost, '.join(ways)}."


def _start(site: Site) -> Iterator[str]:
    for name in sorted(site.services):
        again = f'`/dr app rollout {name} --reason "recovery" --target {name}`'
        yield f"Start and check: {again}, then `/dr pods {name}`."


class ImagesParams(Frozen):
    """Takes nothing."""


class ImageState(Query[ImagesParams]):
    """Every image that runs, looked for by digest in the registry of the recovery region."""

    name: ClassVar[str] = "status.images"
    summary: ClassVar[str] = "Look for every running image in the registry of the recovery region"
    params = ImagesParams

    async def read(self, params: ImagesParams, ports: Ports) -> Report:  # noqa: ARG002 - nothing to choose
        images = await ports.points.images()
        held = sum(part.held for part in images)
        return Report(
            title=f"{held} of {counted(len(images), 'image')} in the registry of the recovery region",
            columns=("image", "repository there", "digest", "held"),
            rows=tuple(
                (part.image, part.repository, part.digest[:19], "yes" if part.held else "no") for part in images
            ),
            findings=tuple(image_findings(images)),
        )


def image_findings(images: Sequence[ImagePart]) -> list[Finding]:
    """What a cluster in the recovery region could not start."""
    return [
        Finding(
            check=f"image {part.image}",
            verdict=Verdict.WARN if part.held else Verdict.STOP,
            detail=part.problem,
            hint=_image_hint(part),
        )
        for part in images
        if part.problem
    ]


def _image_hint(part: ImagePart) -> str:
    if part.unread:
        return UNASKED if part.repository else UNREAD
    return "Deploy by digest." if part.held else COPY_IT


def _lack(sentence: str) -> Finding:
    return Finding(check="lacks", verdict=Verdict.WARN, detail=sentence)
