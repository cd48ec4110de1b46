"""How things stand: what the plan's "Critical Commands" show, in one answer each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from actions.contract import Finding, Query, Report, Verdict
from actions.errors import DrError, UserError
from actions.ports import DatabaseFacts, NamespaceFacts, Ports
from actions.site import Database, Frozen, Site, WorkloadKind
from actions.steps.choice import checked_words, loss
from actions.steps.gitops import suspended_findings
from actions.steps.phrases import counted, moment, names, size, span
from actions.steps.scene import application_of


class CatalogueParams(Frozen):
    """Whose backups are listed."""

    database: str = Field(min_length=1)


class Catalogue(Query[CatalogueParams]):
    """Every backup of one database, those that must not be used included."""

    name: ClassVar[str] = "status.catalogue"
    summary: ClassVar[str] = "List every backup of a database"
    params = CatalogueParams

    async def read(self, params: CatalogueParams, ports: Ports) -> Report:
        ports.site.database(params.database)
        entries = await ports.backups.catalogue(params.database)
        return Report(
            title=f"{counted(len(entries), 'backup')} of `{params.database}`",
            columns=("backup", "state of", "age", "stored", "database", "checked"),
            rows=tuple(
                (
                    entry.manifest.id,
                    moment(entry.manifest.snapshot_at),
                    span(loss(entry, ports.clock.now())),
                    size(entry.manifest.stored.bytes),
                    size(entry.manifest.database_bytes),
                    checked_words(entry),
                )
                for entry in entries
            ),
        )


class DatabasesParams(Frozen):
    """One database of the plan file, or all."""

    database: str | None = None


class Databases(Query[DatabasesParams]):
    """Sizes as `pg_size_pretty` prints them, sessions, and what plans left beside."""

    name: ClassVar[str] = "status.databases"
    summary: ClassVar[str] = "Show the size and sessions of every database"
    params = DatabasesParams

    async def read(self, params: DatabasesParams, ports: Ports) -> Report:
        keys = sorted(ports.site.databases) if params.database is None else [params.database]
        wanted = [ports.site.database(key) for key in keys]
        rows: list[tuple[str, ...]] = []
        findings: list[Finding] = []
        for server in sorted({database.server for database in wanted}):
            here = [database for database in wanted if database.server == server]
            try:
                facts = await ports.postgres.databases(server)
            except UserError:
                raise
            except DrError as error:
                # One server that is down must not hide the others.
                findings.append(
                    Finding(
                        check=f"server {server}",
                        verdict=Verdict.STOP,
                        detail=f"Server `{server}` does not answer: {error}",
                        hint="Look at the server; `restore.dump` can use a spare one.",
                    )
                )
                continue
            rows += _sizes(server, here, facts)
            findings += _missing(here, facts)
        return Report(
            title="Databases",
            columns=("server", "database", "size", "sessions", "connections", "note"),
            rows=tuple(rows),
            findings=tuple(findings),
        )


def _sizes(server: str, wanted: Sequence[Database], facts: Sequence[DatabaseFacts]) -> list[tuple[str, ...]]:
    """The protected databases, and those that plans made or set aside, which carry a mark."""
    protected = {database.name for database in wanted}
    return [
        (
            server,
            item.name,
            size(item.bytes),
            str(item.sessions),
            "open" if item.allows_connections else "closed",
            item.mark,
        )
        for item in sorted(facts, key=lambda item: item.name)
        if item.name in protected or item.mark
    ]


def _missing(wanted: Sequence[Database], facts: Sequence[DatabaseFacts]) -> list[Finding]:
    there = {item.name for item in facts}
    return [
        Finding(
            check=f"database {database.name}",
            verdict=Verdict.STOP,
            detail=f"Database `{database.ref}` does not exist.",
            hint="Restore it with `restore.dump`.",
        )
        for database in wanted
        if database.name not in there
    ]


class ClusterParams(Frozen):
    """One service of the plan file, or all."""

    service: str | None = None


class ClusterState(Query[ClusterParams]):
    """What `kubectl get all` shows of the namespaces the services live in."""

    name: ClassVar[str] = "status.cluster"
    summary: ClassVar[str] = "Show the workloads and pods of the application"
    params = ClusterParams

    async def read(self, params: ClusterParams, ports: Ports) -> Report:
        places = _places(ports.site, params.service)
        rows: list[tuple[str, ...]] = []
        findings: list[Finding] = []
        for cluster, namespace in places:
            facts = await ports.cluster.overview(cluster, namespace)
            rows += _rows(f"{cluster}/{namespace}", facts)
            findings += _unready(facts)
        for name in sorted(ports.site.services) if params.service is None else [params.service]:
            findings += suspended_findings(name, (await application_of(ports, name)).workloads)
        return Report(
            title=f"Kubernetes: {names('/'.join(place) for place in places) or 'no namespace in the plan file'}",
            columns=("where", "kind", "name", "ready", "state"),
            rows=tuple(rows),
            findings=tuple(findings),
        )


def _places(site: Site, service: str | None) -> list[tuple[str, str]]:
    services = site.services.values() if service is None else [site.service(service)]
    return sorted({(ref.cluster, ref.namespace) for known in services for ref in known.workloads})


def _rows(where: str, facts: NamespaceFacts) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            where,
            item.ref.kind.value,
            item.ref.name,
            f"{item.ready}/{item.replicas}",
            f"stopped by plan {item.mark}" if item.recorded is not None else "",
        )
        for item in facts.workloads
    ]
    for pod in facts.pods:
        state = f"{pod.phase} {pod.reason}".strip()
        again = f", {counted(pod.restarts, 'restart')}" if pod.restarts else ""
        rows.append((where, "Pod", pod.name, "1/1" if pod.ready else "0/1", state + again))
    return rows


def _unready(facts: NamespaceFacts) -> list[Finding]:
    return [
        Finding(
            check=str(item.ref),
            verdict=Verdict.WARN,
            detail=f"{item.ref} has {item.ready} of {item.replicas} replicas ready.",
        )
        for item in facts.workloads
        # A CronJob between two of its jobs has nothing running.
        if item.ready < item.replicas and item.ref.kind is not WorkloadKind.CRON_JOB
    ]
