"""Sealing keys: what a new cluster needs to open the SealedSecrets that are in Git."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from actions.contract import Action, Finding, Lock, Observation, Plan, Query, Report, Risk, Step, Verdict
from actions.errors import DrError, UserError
from actions.escrow import EscrowEntry, SealingKey, uncovered
from actions.ports import Ports
from actions.site import EscrowPolicy, Frozen, Site
from actions.steps import byhand
from actions.steps.escrow import EscrowKeys
from actions.steps.naming import backup_id
from actions.steps.phrases import counted, moment, names

GONE = "A new cluster could not decrypt what is sealed with {keys}: only this cluster has {it}."


class EscrowParams(Frozen):
    """One cluster of the plan; may be left out where only one has a controller."""

    cluster: str | None = None
    requested_by: str = ""


class EscrowSecrets(Action[EscrowParams]):
    """Put the keys of a cluster's SealedSecrets controller into escrow."""

    name: ClassVar[str] = "secrets.escrow"
    summary: ClassVar[str] = "Encrypt the sealing keys of a cluster to the recipients and keep them outside of it"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = EscrowParams
    steps: ClassVar[tuple[type[Step], ...]] = (EscrowKeys,)

    async def plan(self, params: EscrowParams, ports: Ports, plan_id: str) -> Plan:
        cluster = _chosen(params.cluster, ports.site)
        policy = _policy(ports.site)
        keys = await ports.escrow.current(cluster)
        missing = uncovered(keys, await ports.escrow.entries(cluster))
        step = EscrowKeys(
            cluster=cluster,
            namespace=ports.site.clusters[cluster].sealed_secrets,
            escrow=backup_id(cluster, plan_id),
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
            target=cluster,
            params=params.model_copy(update={"cluster": cluster}).model_dump(mode="json"),
            locks=(Lock(key=f"escrow:{cluster}"),),
            steps=(step,),
            made_at=ports.clock.now(),
            observations=(
                Observation(name="keys", value=str(len(keys))),
                Observation(name="in no escrow yet", value=names(key.name for key in missing) or "none"),
            ),
        )


def _chosen(wanted: str | None, site: Site) -> str:
    having = sorted(name for name, cluster in site.clusters.items() if cluster.sealed_secrets)
    if wanted is None and len(having) == 1:
        return having[0]
    if wanted in having:
        return str(wanted)
    if not having:
        raise UserError("The plan file names no controller of SealedSecrets. Give a cluster `sealed_secrets`.")
    raise UserError(f"Name one of the clusters with SealedSecrets: {names(having)}.")


def _policy(site: Site) -> EscrowPolicy:
    if site.escrow is None:
        raise UserError("The plan file says nothing of an escrow. Add `backups.escrow` with a bucket.")
    return site.escrow


class EscrowStateParams(Frozen):
    """Takes nothing."""


class EscrowState(Query[EscrowStateParams]):
    """Every key of every controller and the newest escrow that has it, with the commands that give them back."""

    name: ClassVar[str] = "status.escrow"
    summary: ClassVar[str] = "Show which sealing keys are in escrow, and how a new cluster gets them"
    params = EscrowStateParams

    async def read(self, params: EscrowStateParams, ports: Ports) -> Report:  # noqa: ARG002 - nothing to choose
        having = sorted(name for name, cluster in ports.site.clusters.items() if cluster.sealed_secrets)
        rows: list[tuple[str, ...]] = []
        findings: list[Finding] = []
        lines: list[str] = []
        for cluster in having:
            findings += [
                finding for finding in await escrow_findings(cluster, ports) if finding.verdict is not Verdict.OK
            ]
            try:
                entries = await ports.escrow.entries(cluster)
            except DrError:
                continue  # a finding says so
            try:
                keys: Sequence[SealingKey] = await ports.escrow.current(cluster)
            except DrError:
                keys = ()  # the cluster is gone: that is what the escrow is for
            rows += [_row(cluster, key, entries) for key in keys]
            lines += _given_back(cluster, entries, ports)
        whose = names(having) or "no cluster: the plan names no controller"
        return Report(
            title=f"{counted(len(rows), 'sealing key')} of {whose}",
            lines=tuple(lines),
            columns=("cluster", "key", "made", "state", "newest escrow", "of"),
            rows=tuple(rows),
            findings=tuple(findings),
        )


def _row(cluster: str, key: SealingKey, entries: Sequence[EscrowEntry]) -> tuple[str, ...]:
    state = "active" if key.active else "old"
    for entry in entries:
        if entry.problem is None and key.fingerprint in {held.fingerprint for held in entry.manifest.keys}:
            return (cluster, key.name, moment(key.made_at), state, entry.manifest.id, moment(entry.manifest.made_at))
    return (cluster, key.name, moment(key.made_at), state, "none", "")


def _given_back(cluster: str, entries: Sequence[EscrowEntry], ports: Ports) -> list[str]:
    usable = [entry.manifest for entry in entries if entry.problem is None]
    if not usable:
        return []
    newest, namespace = usable[0], ports.site.clusters[cluster].sealed_secrets
    endpoint = ports.site.endpoint_of(newest.bucket)
    fetch = byhand.aws(endpoint, "s3", "cp", f"s3://{newest.bucket}/{newest.key}", "keys.age")
    apply = byhand.kubectl(cluster, namespace, "apply", "-f", "-")
    again = byhand.kubectl(cluster, namespace, "delete", "pod", "-l", "name=sealed-secrets-controller")
    return [
        f"A new `{cluster}` gets them from a custodian, who holds the age identity:",
        f"`{fetch}`",
        f'`age -d -i "$AGE_IDENTITY_FILE" keys.age | {apply}`',
        f"`{again}` (the controller reads its keys when it starts)",
    ]


async def escrow_findings(cluster: str, ports: Ports) -> list[Finding]:
    """Whether a new cluster could open what is sealed."""
    check = f"sealing keys of {cluster}"
    if ports.site.escrow is None:
        detail = "A new cluster could not decrypt the SealedSecrets: their keys are in this cluster alone."
        return [_stop(check, detail, "Add `backups.escrow` to the plan file.")]
    try:
        entries = await ports.escrow.entries(cluster)
        current = await ports.escrow.current(cluster)
    except DrError as error:
        return [_stop(check, str(error), "Look at the cluster, its account's rights, and the bucket of the escrow.")]
    found = [
        _warn(check, f"Escrow `{entry.manifest.id}` must not be relied on: {entry.problem}", "Look at the bucket.")
        for entry in entries
        if entry.problem is not None
    ]
    missing = uncovered(current, entries)
    if missing:
        it = "it" if len(missing) == 1 else "them"
        detail = GONE.format(keys=names(key.name for key in missing), it=it)
        return [_stop(check, detail, f"Run `/dr secrets escrow {cluster}` now."), *found]
    if not current:
        return [_warn(check, "There is none where the plan looks.", "Correct `sealed_secrets` of the cluster."), *found]
    ok = Finding(check=check, verdict=Verdict.OK, detail=f"{counted(len(current), 'key')}, all in escrow")
    return found or [ok]


async def return_findings(cluster: str, ports: Ports) -> list[Finding]:
    """Whether the bot could give lost keys back out of the newest escrow; nothing where the plan does not say so."""
    policy = ports.site.escrow
    if policy is None or not policy.identity:
        return []
    check = f"return of sealing keys of {cluster}"
    usable = [each.manifest.id for each in await ports.escrow.entries(cluster) if each.problem is None]
    try:
        for escrow in usable[:1]:
            await ports.escrow.check(cluster, escrow, ())
    except DrError as error:
        return [_warn(check, str(error), "A custodian can still give them back: `/dr secrets status`.")]
    return [Finding(check=check, verdict=Verdict.OK, detail=f"escrow `{usable[0]}` opens")] if usable else []


async def secrets_findings(cluster: str, ports: Ports) -> list[Finding]:
    """Whether a recovery point can seal the Secrets of a cluster, and whether the bot could give them back; nothing
    where the plan does not say so."""
    policy = ports.site.escrow
    if policy is None or not policy.secrets:
        return []
    check = f"secrets of {cluster}"
    try:
        now = await ports.secret_copies.current(cluster)
    except DrError as error:
        detail = f"Recovery points cannot seal them: {error}"
        return [_warn(check, detail, f"Give the worker `list` of Secrets in {_places(cluster, ports)}, see `deploy/`.")]
    own = sum(not each.by for each in now.secrets)
    found = [
        _warn(check, f"Sealed copy `{entry.manifest.id}` must not be relied on: {entry.problem}", "Look at the bucket.")
        for entry in await ports.secret_copies.entries(cluster)
        if entry.problem is not None
    ]
    if policy.identity:
        try:
            await ports.secret_copies.may_give_back(cluster)
        except DrError as error:
            hint = "A custodian can still give them back; `deploy/` has the rights that the bot needs."
            return [_warn(f"return of secrets of {cluster}", str(error), hint), *found]
    ok = Finding(check=check, verdict=Verdict.OK, detail=f"{own} are sealed with each recovery point")
    return found or [ok]


def _places(cluster: str, ports: Ports) -> str:
    refs = [ref for service in ports.site.services.values() for ref in service.workloads if ref.cluster == cluster]
    return names(sorted({ref.namespace for ref in refs}))


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)
