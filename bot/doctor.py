"""The doctor: everything the bot needs, looked at now, with what is lost without it and the next thing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sqlalchemy import text

from actions.catalog.escrow import escrow_findings, return_findings, secrets_findings
from actions.catalog.files import copy_findings
from actions.catalog.manifests import mirror_findings, push_findings
from actions.catalog.points import image_findings, point_findings
from actions.contract import Finding, Verdict
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.alarms import alarms, of_restore_tests
from actions.steps.base_copies import base_copy_findings
from actions.steps.gitops import suspended_findings
from actions.steps.health import health as standing_of
from actions.steps.holds import hold_findings
from actions.steps.mirrors import mirrors
from actions.steps.old_primary_scene import workload_findings
from actions.steps.page_checksums import server_findings
from actions.steps.phrases import span, version
from actions.steps.postures import apart_findings, posture_findings, trial_findings
from actions.steps.replicas import replica_findings, replicas
from actions.steps.restore_kit import kit_findings
from actions.steps.standby import standby_finding
from actions.steps.strays import stray_findings
from bot.plan_file import DrPlan
from bot.plan_file.quorum import gaps
from bot.prover import prover_findings
from bot.services.approvals import Policy
from bot.services.leftovers import Leftovers
from bot.services.record.health import health
from bot.services.record.watch import Watch
from storage import accounts, processes
from storage.session import Database

PATIENCE = timedelta(minutes=1)
"""How long one check may take. A bucket that hangs is given up by its client before: what else hangs is a server."""

ALIVE = timedelta(seconds=30)

Check = Callable[[], Awaitable[list[Finding]]]


class Doctor:
    """Looks, and changes nothing; in a bucket of backups it stores a few bytes and takes them away again."""

    def __init__(
        self,
        database: Database,
        plan: DrPlan,
        policy: Policy,
        ports: Ports,
        *,
        record: Watch | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._database = database
        self._plan = plan
        self._policy = policy
        self._ports = ports
        self._patience = patience
        self._record = record  # None: the plan has no witnesses

    async def examine(self, *, quick: bool = False) -> list[Finding]:
        """All findings, worst first. `quick` leaves out what has to ask other machines."""
        checks: list[tuple[str, Check]] = [("own database", self._memory), ("processes", self._processes)]
        if not quick:
            checks += [("record", self._sealed)]
            checks += [("roster", self._roster), ("servers", self._servers), ("backups", self._backups)]
            checks += [("buckets", self._buckets), ("files", self._files), ("sealing keys", self._escrow)]
            checks += [("restore kit", lambda: kit_findings(self._ports)), ("pins", lambda: hold_findings(self._ports))]
            checks += [("manifests", self._manifests)]
            checks += [("base backups", self._engines), ("standbys", self._standbys)]
            checks += [("base backups", lambda: base_copy_findings(self._ports))]
            checks += [("restore tests", self._restore_tests)]
            checks += [("uploads", lambda: stray_findings(self._ports))]
            checks += [("images", self._images), ("recovery points", self._points)]
            checks += [("jobs", self._jobs)]
            checks += [("pager", self._pager)]
            checks += [("application", self._services), ("secrets", self._secrets), ("left over", self._leftovers)]
        # Beside each other: what neither answers nor refuses holds up its own check alone.
        found = await asyncio.gather(*(self._one(name, check) for name, check in checks))
        findings = [finding for part in found for finding in part]
        order = [Verdict.STOP, Verdict.WARN, Verdict.OK]
        return sorted(findings, key=lambda finding: order.index(finding.verdict))

    async def _one(self, name: str, check: Check) -> list[Finding]:
        again = "Repair this first, then ask the doctor again."
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                return [*await check()]
        except TimeoutError:
            text = f"no answer within {span(self._patience)}: what it asks (a bucket, a server, a cluster) hangs"
            return [_stop(name, text, again)]
        except DrError as error:
            return [_stop(name, str(error), again)]

    async def _memory(self) -> list[Finding]:
        await self._database.ready()
        async with self._database.session() as session:
            own = str((await session.execute(text("SELECT system_identifier FROM pg_control_system()"))).scalar_one())
            dead = int((await session.execute(text("SELECT count(*) FROM outbox WHERE state = 'dead'"))).scalar_one())
        findings = [_ok("own database", "answers, and its schema is this version's")]
        if dead:
            detail = f"{dead} message(s) could not be delivered to Slack or to the pager"
            findings.append(_warn("outbox", detail, "Read the timeline with `/dr-incident timeline`; nothing is lost."))
        for name in sorted(self._ports.site.servers):
            try:
                facts = await self._ports.postgres.server(name)
            except DrError:
                continue  # `_servers` reports it
            if facts.system_id == own:
                detail = f"the bot's own database lives on `{name}`, which it is there to rescue"
                findings.append(_stop("own database", detail, "Move it: set DATABASE_URL to another server."))
        return findings

    async def _processes(self) -> list[Finding]:
        async with self._database.session() as session:
            rows = await processes.alive(session, within=ALIVE)
        findings = []
        for role, loss in (
            ("slack", "nobody is answered in Slack"),
            ("worker", "nothing is carried out"),
            ("clock", "nothing happens on schedule"),
        ):
            there = [row for row in rows if role in row.roles.split(",")]
            if there:
                findings.append(_ok(f"process {role}", f"{len(there)} alive"))
            else:
                findings.append(_stop(f"process {role}", loss, f"Start `drbot run --role {role}`."))
        findings += await prover_findings(self._plan, rows, self._ports.secrets)
        for row in rows:
            if trouble := str(row.notes.get("trouble") or ""):
                hint = "Put it right and start that process again; until then use `drbot` at the command line."
                findings.append(_stop("Slack", trouble, hint))
            for feature, lost in row.notes.get("lost", {}).items():
                findings.append(
                    _warn(f"Slack: {feature}", str(lost), "Grant the scope in manifest.yml, or go without.")
                )
        return findings

    async def _sealed(self) -> list[Finding]:
        if self._record is None:
            detail = "nobody outside the bot's database vouches for it; a rewritten one would not be noticed, and " + (
                "`approval.unwitnessed` lets destructive plans run all the same"
                if self._policy.witnessed
                else "DESTRUCTIVE and IRREVERSIBLE plans are refused"
            )
            return [_warn("record", detail, "Add `record` with a key and witnesses to the plan file.")]
        return await health(self._database, self._record, self._ports.clock)

    async def _roster(self) -> list[Finding]:
        findings = []
        able = {name for name, person in self._policy.roster.items() if person.means}
        silent = sorted(self._policy.roster.keys() - able)
        if silent:
            detail = f"without a Slack account and without a key, cannot sign: {', '.join(silent)}"
            findings.append(_warn("roster", detail, "Add their `slack_ids` or `keys` to the plan file."))
        hour = self._ports.clock.now().replace(minute=0, second=0, microsecond=0)
        for gap in gaps(self._plan, hour):
            tell = _warn if gap.hours else _stop  # at some hours, or never
            findings.append(tell("signers", gap.sentence, "Add persons to the roster or to the rota."))
        async with self._database.session() as session:
            barred = [row for row in await accounts.of(session, self._policy.accounts) if row.problem]
        for row in barred:
            name = self._policy.name(self._policy.accounts[row.account])
            findings.append(_warn("signers", f"{name} cannot sign as `{row.account}`: {row.problem}", "Ask in Slack."))
        return findings or [_ok("roster", f"{len(able)} persons can sign; every risk has a quorum")]

    async def _servers(self) -> list[Finding]:
        findings = []
        for name in sorted(self._ports.site.servers):
            try:
                facts = await self._ports.postgres.server(name)
                findings.append(_ok(f"server {name}", f"PostgreSQL {version(facts.version)} at {facts.address}"))
                if name in self._ports.site.physical:
                    findings += server_findings(name, facts.checksums, check=f"server {name}")
                findings += await workload_findings(self._ports, name)
            except DrError as error:
                findings.append(_stop(f"server {name}", str(error), "Look at the server and at its `admin_dsn`."))
        return findings

    async def _backups(self) -> list[Finding]:
        findings = []
        for name, policy in sorted(self._ports.site.backups.items()):
            try:
                entries = await self._ports.backups.catalogue(name)
            except DrError as error:
                findings.append(_stop(f"backups of {name}", str(error), f"Look at bucket `{policy.bucket}`."))
                continue
            stored = {entry.manifest.id for entry in entries}
            findings += [
                _warn(
                    f"backups of {name}",
                    f"`{copy.manifest.id}` is in the local copy alone, not in `{policy.bucket}`",
                    f"Bring it there: `/dr-backup upload {name} {copy.manifest.id}`.",
                )
                for copy in await self._ports.backups.copies(name)
                if copy.manifest.id not in stored
            ]
            usable = [entry for entry in entries if entry.problem is None]
            if usable:
                detail = f"{len(usable)} usable in `{policy.bucket}`"
                findings.append(_ok(f"backups of {name}", detail))
            else:
                findings.append(_stop(f"backups of {name}", "none", f"Run `/dr-backup run {name}` now."))
        return findings

    async def _engines(self) -> list[Finding]:
        """What makes the base backups of each server, and whether it can."""
        findings = []
        for name, policy in sorted(self._ports.site.physical.items()):
            check = f"{policy.engine} of {name}"
            try:
                lacks = await self._ports.physical.lacks(name)
            except DrError as error:
                findings.append(_warn(check, f"nobody can tell what it lacks: {error}", "Look at the server first."))
                continue
            findings += [(_stop if lack.stops else _warn)(check, lack.what, lack.next) for lack in lacks]
            if not lacks:
                findings.append(_ok(check, "has what it needs"))
        return findings

    async def _restore_tests(self) -> list[Finding]:
        """Whether restores are proven, and of what runs now."""
        seen = await standing_of(self._ports, beside=False, replicas=False)
        wrong = [alarm for alarm in alarms(seen) if of_restore_tests(alarm)]
        if not wrong:
            return [_ok("restore tests", "none has failed or is overdue, and nothing was upgraded since")]
        return [_warn("restore tests", alarm.text, alarm.hint) for alarm in wrong]

    async def _standbys(self) -> list[Finding]:
        now = self._ports.clock.now()
        return [
            standby_finding(facts, facts.following, now)
            for facts in await self._ports.scratch.instances()
            if facts.following is not None
        ]

    async def _buckets(self) -> list[Finding]:
        """Settings against the plan, and a few bytes stored and read the way backups are."""
        findings = apart_findings(self._ports.site)
        for name, bucket in sorted(self._ports.site.buckets.items()):
            try:
                facts = await self._ports.buckets.facts(name)
                findings += posture_findings(self._ports.site, bucket, facts)
                if bucket.posture.used:
                    findings += trial_findings(name, await self._ports.buckets.trials(name, bucket.posture.used[0]))
            except DrError as error:
                findings.append(_stop(f"bucket {name}", str(error), "Look at the store and at the bucket's keys."))
        site = self._ports.site
        copies = await replicas(self._ports, markers=True)
        return [*findings, *(finding for copy in copies for finding in replica_findings(site, copy))]

    async def _files(self) -> list[Finding]:
        findings = []
        for name, policy in sorted(self._ports.site.files.items()):
            try:
                copies = await self._ports.files.copies(name)
            except DrError as error:
                findings.append(_stop(f"files {name}", str(error), f"Look at bucket `{policy.copy_bucket}`."))
                continue
            findings += copy_findings(policy, copies, self._ports)
        return findings

    async def _escrow(self) -> list[Finding]:
        sealed = [name for name, cluster in sorted(self._ports.site.clusters.items()) if cluster.sealed_secrets]
        found = [finding for cluster in sealed for finding in await escrow_findings(cluster, self._ports)]
        found += [finding for cluster in sealed for finding in await return_findings(cluster, self._ports)]
        clusters = self._ports.site.service_clusters
        return [*found, *[each for cluster in clusters for each in await secrets_findings(cluster, self._ports)]]

    async def _manifests(self) -> list[Finding]:
        found = [finding for mirror in await mirrors(self._ports) for finding in mirror_findings(mirror, self._ports)]
        policies = [policy for _, policy in sorted(self._ports.site.manifests.items())]
        return [*found, *[each for policy in policies for each in await push_findings(policy, self._ports)]]

    async def _images(self) -> list[Finding]:
        if self._ports.site.images is None:
            return []
        images = await self._ports.points.images()
        good = _ok("images", f"{len(images)}, all in the registry of the recovery region")
        return image_findings(images) or [good]

    async def _points(self) -> list[Finding]:
        if self._ports.site.points is None:
            return []
        entries = await self._ports.points.entries()
        good = _ok("recovery points", f"{len(entries)} recorded")
        return list(point_findings(entries, self._ports)) or [good]

    async def _jobs(self) -> list[Finding]:
        found = [
            _stop("jobs", problem, "Until then no step that moves data can run.")
            for problem in await self._ports.executor.problems()
        ]
        return found or [_ok("jobs", "can be started")]

    async def _services(self) -> list[Finding]:
        findings = []
        for name, service in sorted(self._ports.site.services.items()):
            for ref in service.workloads:
                try:
                    facts = await self._ports.cluster.workload(ref)
                except DrError as error:
                    findings.append(_stop(str(ref), str(error), "Look at the cluster and at its `kubeconfig`."))
                    continue
                if facts is None:
                    findings.append(_stop(str(ref), "does not exist", "Correct the plan file, or create it."))
                    continue
                findings += [held for held in suspended_findings(name, [facts]) if held not in findings]
            if service.health_url is not None:
                problem = await self._ports.service.http(service.health_url)
                found = _ok(name, "answers") if problem is None else _warn(name, problem, "Open an incident.")
                findings.append(found)
        return findings

    async def _leftovers(self) -> list[Finding]:
        """What loads left on the servers when a server or a job died; a worker removes most of it by itself."""
        found = await Leftovers(self._database, self._ports).look()
        soon = "A worker removes it now."
        return [_warn("left over", f"{item.item.shown}, mark `{item.item.mark}`", item.kept or soon) for item in found]

    async def _pager(self) -> list[Finding]:
        if self._plan.pager is None:
            detail = "nobody is told outside Slack of break-glass, of runs that ask, of Slack under suspicion"
            return [_warn("pager", detail, "Name a webhook as `pager` in the plan file.")]
        await self._ports.secrets.resolve(self._plan.pager)
        return [_ok("pager", "its address is there")]

    async def _secrets(self) -> list[Finding]:
        findings = []
        for name, policy in sorted(self._ports.site.backups.items()):
            for what, ref in (("identity", policy.identity), ("signing key", policy.signing_key)):
                if not ref:
                    detail = f"the {what} of {name} is not set, so " + (
                        "nothing can be restored" if what == "identity" else "nothing can be dumped"
                    )
                    findings.append(_stop(what, detail, "Give it in the plan file, as a reference."))
                    continue
                try:
                    await self._ports.secrets.resolve(ref)
                    findings.append(_ok(f"{what} of {name}", "is there"))
                except DrError as error:
                    findings.append(_stop(f"{what} of {name}", str(error), "Provide what the reference names."))
        return findings


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, detail=detail)


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)
