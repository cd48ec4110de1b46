"""Bring a whole recovery point back by one plan: databases, files, images, the commit of the manifests, sealing keys
and sealed Secrets; the rest is named with its commands.

The order: copies are made and compared beside production, and sealing keys come back; then GitOps is suspended and the
branch goes back to the point's commit; everything that writes stops, images are set back, Secrets come back, databases
are switched, files come back, everything starts, and GitOps applies the commit. Until everything stops nothing that
users see has changed; from then on a failure puts databases, images, replaced Secrets and files, workloads and the
branch back as they were. Where Secrets or files themselves fail people are asked first: copies took hours, perhaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import UserError
from actions.points import RecoveryPoint
from actions.ports import Ports, WorkloadFacts
from actions.site import Frozen, WorkloadRef
from actions.steps.application import CheckApplication
from actions.steps.choice import SWITCH
from actions.steps.commits import BranchIs, CommitManifests
from actions.steps.copies import CompareCopy, LoadDump
from actions.steps.databases import CloseDatabase, GiveName, SwapDatabases
from actions.steps.escrow_return import EscrowIs, ReturnKeys
from actions.steps.facts import BackupIs, DatabaseIs, DiskFree, NamesFree, ServerIs, WorkloadIs
from actions.steps.files import BringBackFiles, CopyIs, FilesAtMost
from actions.steps.forecasts import rto_findings
from actions.steps.gitops import Controller, ResumeGitOps, SuspendGitOps, controller_locks, controllers_of
from actions.steps.images import ImagesAre, SetImages
from actions.steps.moments import exact
from actions.steps.phrases import counted, moment, names, span
from actions.steps.point_cluster import ImageChange, image_changes, image_lines, mirror_words, registry_lines
from actions.steps.point_commits import Commits, commits, key_of, unlike
from actions.steps.point_compare import ComparePoint, PointIs, fingerprint, recorded, unread
from actions.steps.point_databases import Return, database_returns, side_by_side
from actions.steps.point_files import files_share
from actions.steps.point_keys import keys_share
from actions.steps.point_secrets import SecretsShare, secrets_share, unrolled
from actions.steps.point_share import ManualLine, Share, together
from actions.steps.scratch_copies import CompareScratch, CopyDatabase
from actions.steps.scratch_facts import ScratchIs
from actions.steps.secret_return import KeepSecrets, NotExposed, ReturnSecrets, SecretCopyIs, SecretsAre
from actions.steps.workloads import RestartWorkload
from actions.steps.writers import StartWriters, StopWriters, writers_of


class RestorePointParams(Frozen):
    """Which point, the scratch instance that shows its databases (without, the one that stands at its moment), and the
    Secrets that are replaced."""

    point: str = Field(min_length=1)
    scratch: str | None = None
    secret: str = ""  # those that have changed since and are to be replaced, with commas between


class RestoreRecoveryPoint(Action[RestorePointParams]):
    """The site as it was at one moment, as far as the bot can; replaced databases are kept in quarantine."""

    name: ClassVar[str] = "restore.recovery_point"
    summary: ClassVar[str] = "Bring a recovery point back as one: databases, files, images, manifests and secrets"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = RestorePointParams
    steps: ClassVar[tuple[type[Step], ...]] = (
        CopyDatabase,
        CompareScratch,
        LoadDump,
        CompareCopy,
        KeepSecrets,
        ReturnKeys,
        RestartWorkload,
        SuspendGitOps,
        CommitManifests,
        StopWriters,
        SetImages,
        ReturnSecrets,
        CloseDatabase,
        SwapDatabases,
        GiveName,
        BringBackFiles,
        StartWriters,
        CheckApplication,
        ResumeGitOps,
        ComparePoint,
    )
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (
        PointIs,
        ScratchIs,
        BackupIs,
        ServerIs,
        DatabaseIs,
        NamesFree,
        DiskFree,
        CopyIs,
        FilesAtMost,
        WorkloadIs,
        ImagesAre,
        BranchIs,
        EscrowIs,
        SecretCopyIs,
        SecretsAre,
        NotExposed,
    )

    async def plan(self, params: RestorePointParams, ports: Ports, plan_id: str) -> Plan:
        scene = await _look(ports, params, plan_id)
        point, returns = scene.point, scene.returns
        switches = await side_by_side(ports, together(each.share for each in returns))
        manual = scene.manual
        steps = (
            *switches.steps,
            *scene.secrets.keeps.steps,
            *scene.keys.steps,
            *_steps(scene, plan_id),
            _comparison(scene),
        )
        lost = " ".join(each.loss for each in returns)
        estimate = sum((each.estimate for each in returns), scene.away)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Bring back recovery point `{point.id}`: everything as of {exact(point.moment)}",
            risk=self.risk,
            target=point.id,
            params=params.model_dump(mode="json"),
            locks=_locks(scene),
            steps=steps,
            preconditions=(
                PointIs(point=point.id, sha256=fingerprint(point)),
                *switches.preconditions,
                *scene.files.preconditions,
                *(WorkloadIs.of(facts) for facts in scene.workloads),
                *(change.precondition for change in scene.changes),
                *scene.keys.preconditions,
                *scene.commits.share.preconditions,
                *scene.secrets.share.preconditions,
            ),
            made_at=ports.clock.now(),
            findings=(
                *switches.findings,
                *scene.files.findings,
                *scene.keys.findings,
                *scene.secrets.share.findings,
                *_too_long(ports, point, estimate),
                *_lacks(point),
                *(line.finding for line in manual),
            ),
            observations=(
                *_observations(scene),
                *switches.observations,
                *scene.files.observations,
                *scene.keys.observations,
                *scene.commits.share.observations,
                *scene.secrets.share.observations,
            ),
            estimate=estimate,
            data_loss=f"{lost} {_files_loss(point)}".strip(),
        )


@dataclass(frozen=True, kw_only=True)
class _Scene:
    point: RecoveryPoint
    returns: Sequence[Return]
    files: Share
    keys: Share
    commits: Commits
    secrets: SecretsShare
    changes: Sequence[ImageChange]
    unlike: Mapping[WorkloadRef, str]  # of changed workloads: why their controller must stay suspended
    workloads: tuple[WorkloadFacts, ...]  # that are stopped meanwhile, each once, in stop order
    governed: tuple[WorkloadFacts, ...]  # others whose controller would apply the commit at once
    mirrors: Sequence[tuple[str, str]]
    others: Sequence[ManualLine]  # of the cluster
    services: Mapping[WorkloadRef, str]
    unrolled: Sequence[ManualLine]  # beside a Secret that is replaced

    @property
    def controllers(self) -> tuple[Controller, ...]:
        return controllers_of((*self.workloads, *self.governed))

    @property
    def kept(self) -> Mapping[str, str]:
        """Controllers that stay suspended, by name, with why: resumed, they would put other images back."""
        facts = [facts for facts in self.workloads if facts.ref in self.unlike]
        return {str(each): self.unlike[each.ref] for each in controllers_of(facts)}

    @property
    def resumed(self) -> tuple[Controller, ...]:
        return tuple(each for each in self.controllers if str(each) not in self.kept)

    @property
    def away(self) -> timedelta:
        """How long the application is stopped, roughly."""
        return SWITCH + self.files.takes

    @property
    def manual(self) -> tuple[ManualLine, ...]:
        held = [each for each in self.controllers if str(each) in self.kept]
        resume = (_resumption(each, self.services[each.ref], self.kept[str(each)]) for each in held)
        commits = (*self.keys.manual, *self.secrets.share.manual, *self.unrolled, *self.commits.share.manual)
        return (*commits, *self.others, *self.files.manual, *resume)


async def _look(ports: Ports, params: RestorePointParams, plan_id: str) -> _Scene:
    point = await recorded(ports, params.point)
    now = await ports.points.gather(point.id)
    if unread(point, now):
        raise UserError(
            f"What runs now cannot be read, so nothing can be compared: {' '.join(now.missing)} Ask again once the "
            f"cluster answers, or bring the parts back one by one: `/dr point list {point.id}` has the commands."
        )
    for part in point.databases:
        ports.site.database(part.database)
    returns = await database_returns(ports, point, params.scratch, plan_id)
    first = len(returns) + 1
    files = [await files_share(ports, point, part, plan_id, first + at) for at, part in enumerate(point.files)]
    changes = image_changes(point, now)
    found = {facts.ref: facts for each in returns for facts in each.switch.workloads}
    for change in changes:
        facts = await ports.cluster.workload(change.ref)
        if facts is not None:
            found.setdefault(change.ref, facts)
    exposed = tuple(await ports.runs.exposures_since(point.taken_at))
    found_commits = await commits(ports, point, now, plan_id, exposed=exposed)
    secrets = await secrets_share(ports, point, now, found_commits, exposed, params.secret, plan_id)
    scene = _Scene(
        point=point,
        returns=returns,
        files=together(files),
        keys=await keys_share(ports, point, exposed, plan_id),
        commits=found_commits,
        secrets=secrets,
        changes=changes,
        unlike=await _unlike(ports, found_commits, changes),
        workloads=tuple(found.values()),
        governed=await _governed(ports, found_commits, found),
        mirrors=await mirror_words(ports, point.manifests),
        services={ref: name for name, service in sorted(ports.site.services.items()) for ref in service.workloads},
        unrolled=tuple(unrolled(ports, secrets.share, [*found])),
        others=(*image_lines(point, now), *await registry_lines(ports, point)),
    )
    parts = (scene.files, scene.keys, scene.commits.share, secrets.share)
    if not any((returns, changes, *(part.steps for part in parts))):
        raise UserError(
            f"Recovery point `{point.id}` holds nothing that the bot could bring back and that differs. "
            f"What is left to people is in `/dr point list {point.id}`."
        )
    return scene


async def _unlike(ports: Ports, found: Commits, changes: Sequence[ImageChange]) -> dict[WorkloadRef, str]:
    refs = {}
    for change in changes:
        if change.ref.cluster not in found.clusters:
            refs[change.ref] = "it would put newer images back. Commit those of the point first"
        elif why := await unlike(ports, found, change.ref, change.after):
            refs[change.ref] = f"{why}. Write the images of the point into the repository first"
    return refs


async def _governed(
    ports: Ports, found: Commits, stopped: Mapping[WorkloadRef, WorkloadFacts]
) -> tuple[WorkloadFacts, ...]:
    """Workloads of the plan in a cluster whose branch gets a commit, that do not stop for it."""
    clusters = {ports.site.manifests[name].cluster for name in found.carried}
    refs = sorted({ref for service in ports.site.services.values() for ref in service.workloads})
    there = [await ports.cluster.workload(ref) for ref in refs if ref.cluster in clusters and ref not in stopped]
    return tuple(facts for facts in there if facts is not None)


def _steps(scene: _Scene, plan_id: str) -> list[Step]:
    """From production as it is to one that works on the copies."""
    controllers, writers = scene.controllers, writers_of(scene.workloads)
    switches = [each.switch for each in scene.returns]
    steps: list[Step] = []
    if controllers:
        steps.append(SuspendGitOps(controllers=controllers, mark=plan_id))
    # What a repository refuses is found while everything still runs.
    steps += scene.commits.share.steps
    if writers:
        steps.append(StopWriters(writers=writers, mark=plan_id))
    # Without replicas nothing rolls out yet: whether the images can be pulled is seen when everything starts.
    steps += [change.step for change in scene.changes]
    # What reads them starts after that, with what belongs together.
    steps += scene.secrets.share.steps
    steps += [step for switch in switches for step in switch.close()]
    steps += [switch.swap() for switch in switches]
    steps += scene.files.steps
    if writers:
        steps.append(StartWriters(writers=writers, mark=plan_id))
    steps += [step for switch in switches for step in switch.start() if isinstance(step, CheckApplication)]
    if scene.resumed:
        steps.append(ResumeGitOps(controllers=scene.resumed, mark=plan_id, optional=True))
    return steps


def _comparison(scene: _Scene) -> ComparePoint:
    return ComparePoint(
        point=scene.point.id,
        manual=tuple(line for each in scene.manual for line in each.lines),
        awaited=tuple(each for each in scene.resumed if key_of(each) in scene.commits.covered),
        returned=scene.secrets.returned,
        optional=True,
        timeout=timedelta(minutes=10),
    )


def _resumption(controller: Controller, service: str, why: str) -> ManualLine:
    return ManualLine(
        what="GitOps",
        why=f"{controller} stays suspended, since {why}.",
        command=f'drbot app resume {service} --reason "the point is committed"',
    )


def _locks(scene: _Scene) -> tuple[Lock, ...]:
    found = {lock.key: lock for each in scene.returns for lock in each.locks}
    for part in scene.point.files:
        found.setdefault(f"files:{part.name}", Lock(key=f"files:{part.name}"))
    for facts in scene.workloads:
        key = f"service:{scene.services[facts.ref]}"
        found.setdefault(key, Lock(key=key))
    found |= {lock.key: lock for lock in controller_locks((*scene.workloads, *scene.governed))}
    for name in scene.commits.carried:
        found[f"manifests:{name}"] = Lock(key=f"manifests:{name}")
    out_of_escrow = (*scene.keys.steps, *scene.secrets.share.steps)
    for cluster in {step.cluster for step in out_of_escrow if isinstance(step, ReturnKeys | ReturnSecrets)}:
        found[f"escrow:{cluster}"] = Lock(key=f"escrow:{cluster}")
    found["recovery-points"] = Lock(key="recovery-points", exclusive=False)
    return tuple(found.values())


def _files_loss(point: RecoveryPoint) -> str:
    copies = names(part.name for part in point.files if part.as_of is None and part.copy_id)
    but = f", {copies} to that of the copy" if copies else ""
    return (
        f"Files go back to the same moment{but}; newer files stay where they are. "
        f"Images are those of {moment(point.taken_at)}."
    )


def _too_long(ports: Ports, point: RecoveryPoint, estimate: timedelta) -> Sequence[Finding]:
    """All databases and files come back one after the other: each alone may keep its RTO, and all of it not."""
    known = {part.database: ports.site.database(part.database).rto for part in point.databases}
    if not known:
        return ()
    first = min(known, key=lambda name: known[name])
    words = f"{span(estimate)} for all of it, RTO of `{first}` {span(known[first])}"
    again = f"Bring the parts back one by one, what is most urgent first: `/dr point list {point.id}` has the commands."
    return rto_findings(estimate, known[first], words, instead=again)


def _lacks(point: RecoveryPoint) -> tuple[Finding, ...]:
    other = [part for part in point.databases if not part.by_wal and part.moment != point.moment]
    found = [
        Finding(
            check="moments",
            verdict=Verdict.WARN,
            detail=f"`{part.database}` is only to be had as of {moment(part.moment)}, out of its dump.",
        )
        for part in other
    ]
    return (*found, *(Finding(check="lacks", verdict=Verdict.WARN, detail=text) for text in point.missing))


def _observations(scene: _Scene) -> tuple[Observation, ...]:
    point = scene.point
    images = names(change.ref.name for change in scene.changes)
    alike = "none that the bot can set back; see what is left to people" if scene.others else "as in the point"
    lines = [
        ("recorded", moment(point.taken_at)),
        ("images", f"set back on {images}" if images else f"{alike} ({counted(len(point.images), 'image')})"),
        ("commit", names(sorted({part.revision[:12] for part in point.manifests})) or "not known"),
        ("secret versions", f"{len(point.versions)} compared" if point.versions else "none recorded"),
        *((("secrets that come with the commit", names(scene.secrets.returned)),) if scene.secrets.returned else ()),
        *scene.mirrors,
        ("left to people", str(len(scene.manual))),
    ]
    if scene.workloads:
        away = f"about {span(scene.away)}, in which databases are switched and files come back"
        lines.append(("application away", away))
    return tuple(Observation(name=name, value=value) for name, value in lines)
