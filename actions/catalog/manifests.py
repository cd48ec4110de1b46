"""The repository of a cluster's manifests: mirrored, and held against the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from actions.contract import Action, Finding, Lock, Observation, Plan, Query, Report, Risk, Step, Verdict
from actions.errors import DrError, UserError
from actions.manifests import BundleEntry, Drift, What
from actions.ports import Ports
from actions.site import Frozen, ManifestsPolicy, Site
from actions.steps import byhand
from actions.steps.manifests import MirrorRepository
from actions.steps.mirrors import Mirror, mirror_trouble, mirrors
from actions.steps.naming import backup_id
from actions.steps.phrases import counted, moment, names, size, span

SHOWN = 20
LISTED = 100
"""Differences that are shown; the count is of all."""


class MirrorParams(Frozen):
    """One repository of the plan; may be left out where there is only one."""

    name: str | None = None
    requested_by: str = ""


class MirrorManifests(Action[MirrorParams]):
    """Mirror the repository of a cluster's manifests."""

    name: ClassVar[str] = "manifests.mirror"
    summary: ClassVar[str] = "Mirror a manifests repository; each new commit becomes a proven, signed bundle"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = MirrorParams
    steps: ClassVar[tuple[type[Step], ...]] = (MirrorRepository,)

    async def plan(self, params: MirrorParams, ports: Ports, plan_id: str) -> Plan:
        policy = _chosen(params.name, ports.site)
        state = await ports.manifests.state(policy.name)
        step = MirrorRepository(
            name=policy.name,
            url=policy.url,
            branch=policy.branch,
            mirror=backup_id(policy.name, plan_id),
            bucket=policy.bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            prefix=policy.prefix,
            recipients=policy.recipients,
            requested_by=params.requested_by,
        )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=step.summary,
            risk=self.risk,
            target=policy.name,
            params=params.model_copy(update={"name": policy.name}).model_dump(mode="json"),
            locks=(Lock(key=f"manifests:{policy.name}"),),
            steps=(step,),
            made_at=ports.clock.now(),
            observations=(
                Observation(name="mirrored until now", value="nothing" if state is None else f"`{state.head[:12]}`"),
                Observation(name="last look", value="never" if state is None else moment(state.checked_at)),
            ),
        )


def _chosen(wanted: str | None, site: Site, *, of_a_cluster: bool = False) -> ManifestsPolicy:
    if not site.manifests:
        raise UserError("The plan file names no repository of manifests. Add `backups.manifests`.")
    fit = [policy for policy in site.manifests.values() if policy.cluster or not of_a_cluster]
    if wanted is None and len(fit) == 1:
        return fit[0]
    if wanted is None:
        raise UserError(f"Name one of the manifests repositories: {names(sorted(site.manifests))}.")
    return site.manifests_of(wanted)


class MirrorStateParams(Frozen):
    """Takes nothing."""


class MirrorsState(Query[MirrorStateParams]):
    """Every repository: when it was looked at, the newest commit, its bundles; and the commands that give one back."""

    name: ClassVar[str] = "status.manifests"
    summary: ClassVar[str] = "Show the mirrors of the manifests repositories, and how one is brought back"
    params = MirrorStateParams

    async def read(self, params: MirrorStateParams, ports: Ports) -> Report:  # noqa: ARG002 - nothing to choose
        rows: list[tuple[str, ...]] = []
        lines: list[str] = []
        findings: list[Finding] = []
        for mirror in await mirrors(ports):
            findings += mirror_findings(mirror, ports)
            try:
                bundles = await ports.manifests.bundles(mirror.policy.name)
            except DrError:
                continue  # a finding says so
            findings += [
                _warn(f"bundle {entry.manifest.commit[:12]}", entry.problem) for entry in bundles if entry.problem
            ]
            usable = [entry for entry in bundles if entry.problem is None]
            rows.append(_row(mirror, usable))
            lines += _given_back(mirror, usable, ports)
        return Report(
            title=f"{counted(len(rows), 'mirror')} of manifests",
            lines=tuple(lines),
            columns=("repository", "branch", "last look", "newest commit", "bundles", "size of the newest"),
            rows=tuple(rows),
            findings=tuple(findings),
        )


def _row(mirror: Mirror, usable: list[BundleEntry]) -> tuple[str, ...]:
    state = mirror.state
    return (
        mirror.policy.name,
        mirror.policy.branch,
        "never" if state is None else moment(state.checked_at),
        "" if state is None else state.head[:12],
        str(len(usable)),
        size(usable[0].manifest.bytes) if usable else "",
    )


def _given_back(mirror: Mirror, usable: list[BundleEntry], ports: Ports) -> list[str]:
    if not usable:
        return []
    newest = usable[0].manifest
    endpoint = ports.site.endpoint_of(newest.bucket)
    fetch = byhand.aws(endpoint, "s3", "cp", f"s3://{newest.bucket}/{newest.key}", "mirror.bundle.age")
    return [
        f"`{mirror.policy.name}` comes back from a custodian, who holds the age identity:",
        f"`{fetch}`",
        '`age -d -i "$AGE_IDENTITY_FILE" -o mirror.bundle mirror.bundle.age`',
        f"`git clone --mirror mirror.bundle {mirror.policy.name}.git` (then push it to a new host)",
    ]


def mirror_findings(mirror: Mirror, ports: Ports) -> list[Finding]:
    """Whether the repository could be brought back as it is now."""
    check = f"manifests {mirror.policy.name}"
    found = [
        Finding(check=check, verdict=Verdict.WARN, detail=trouble.text, hint=trouble.hint)
        for trouble in mirror_trouble(mirror, ports.clock.now())
    ]
    if found or mirror.state is None:
        return found
    ago = span(ports.clock.now() - mirror.state.checked_at)
    detail = f"mirrored at `{mirror.state.head[:12]}`, looked at {ago} ago"
    return [Finding(check=check, verdict=Verdict.OK, detail=detail)]


async def push_findings(policy: ManifestsPolicy, ports: Ports) -> list[Finding]:
    """Whether the branch could go back to the commit of a recovery point; nothing where the plan does not say so."""
    if not policy.push:
        return []
    check = f"push to manifests {policy.name}"
    try:
        await ports.branches.may_push(policy.name)
    except DrError as error:
        hint = "Renew the token of `push`, and let its user write to the repository."
        return [Finding(check=check, verdict=Verdict.WARN, detail=str(error), hint=hint)]
    return [Finding(check=check, verdict=Verdict.OK, detail=f"branch `{policy.branch}` takes a push of the bot")]


class DriftParams(Frozen):
    """One repository of the plan; may be left out where only one is of a cluster that is there."""

    name: str | None = None


class DriftState(Query[DriftParams]):
    """What the cluster lacks, has otherwise, and has too much, beside the manifests."""

    name: ClassVar[str] = "status.drift"
    summary: ClassVar[str] = "List the drift between the mirrored manifests and their cluster"
    params = DriftParams

    async def read(self, params: DriftParams, ports: Ports) -> Report:
        policy = _chosen(params.name, ports.site, of_a_cluster=True)
        drift = await ports.manifests.drift(policy.name)
        total = len(drift.entries)
        found = "no drift" if total == 0 else counted(total, "difference")
        lines = [
            f"{counted(drift.compared, 'object')} of commit `{drift.commit[:12]}`. {drift.basis}",
            f"The mirror was brought up to date {moment(drift.checked_at)}.",
            *drift.controllers,
            *drift.notes,
        ]
        if total > LISTED:
            lines.append(f"The first {LISTED} of {total} are shown.")
        findings = [_warn("not compared", text) for text in drift.not_understood[:SHOWN]]
        if len(drift.not_understood) > SHOWN:
            findings.append(_warn("not compared", f"{len(drift.not_understood) - SHOWN} more."))
        return Report(
            title=f"`{drift.cluster}` beside `{drift.name}`: {found}",
            lines=tuple(lines),
            columns=("what", "object", "field", "in the manifests", "in the cluster"),
            rows=tuple(_rows(drift)),
            findings=tuple(findings),
        )


def _rows(drift: Drift) -> Iterator[tuple[str, ...]]:
    order = (What.MISSING, What.CHANGED, What.EXTRA)
    for entry in sorted(drift.entries, key=lambda entry: order.index(entry.what))[:LISTED]:
        yield (entry.what.value, entry.object, entry.path, entry.wanted, entry.found)


def _warn(check: str, detail: str | None) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail or "")
