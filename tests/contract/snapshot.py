"""A world as it can be seen through its ports, to be compared: before and after, undisturbed and interrupted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from actions.ports import Ports
from actions.site import WorkloadRef
from tests.fakes.world import World


async def seen(ports: World) -> dict[str, Any]:
    """Everything that a run may change. Times and oids of new databases are left out: they differ by the clock and by
    how often a load began."""
    return {
        "databases": _databases(ports),
        "down": sorted(name for name, server in ports.postgres.servers.items() if server.down),
        "tables": _tables(ports),
        "scratch": {
            name: (found.state, found.mark, found.address) for name, found in sorted(ports.scratch.made.items())
        },
        "workloads": await _workloads(ports),
        "configs": await _configs(ports),
        "catalogue": _catalogue(ports),
        "objects": await _objects(ports),
        "bases": _bases(ports),
        "branches": {name: (head, _marks(ports, head)) for name, head in sorted(ports.git.branches.items())},
        "sealing keys": {name: sorted(key.name for key, _ in held) for name, held in ports.sealing.held.items()},
        "secrets": _secrets(ports),
        "points": {entry.point.id: entry.pinned for entry in await ports.points.entries()},
        "plan versions": list(ports.plan_versions.versions),
        "runs": {name: (found.state, list(found.lines)) for name, found in sorted(ports.runs.runs.items())},
    }


async def production(ports: World) -> dict[str, Any]:
    """What users notice: which database answers to which name and whether it lets them in; what runs; what points
    where; whether GitOps goes on. Marks are left out: a note on a database disturbs nobody."""
    databases: dict[str, Any] = {}
    for key, known in ports.site.databases.items():
        found = ports.postgres.servers[known.server].databases.get(known.name)
        content = None if found is None else found.fingerprint.rows
        databases[key] = None if found is None else (found.oid, found.allows_connections, content)
    workloads = {
        name: {key: found[key] for key in ("replicas", "recorded", "suspended", "images")} if found else None
        for name, found in (await _workloads(ports)).items()
    }
    read_only = [name for name, server in ports.postgres.servers.items() if server.read_only]
    return {
        "databases": databases,
        "workloads": workloads,
        "configs": await _configs(ports),
        "read only": read_only,
        # One that was missing and came back is in nobody's way, and stays.
        "secrets": _secrets(ports, but=ports.secret_objects.made),
        "branches": {name: ports.git.trees[head] for name, head in ports.git.branches.items()},
    }


def _secrets(ports: World, *, but: Collection[str] = ()) -> dict[str, Any]:
    """What people and controllers have put into them."""
    held = [each for each in ports.live.held if each["kind"] == "Secret" and each["metadata"]["name"] not in but]
    return {each["metadata"]["name"]: dict(each["data"]) for each in held}


def _marks(ports: World, head: str | None) -> list[str]:
    """Of the commits of plans in the history of a branch."""
    found = []
    while head is not None:
        found.append(ports.git.marks.get(head, ""))
        head = ports.git.parents[head]
    return [mark for mark in found if mark]


def _databases(ports: World) -> dict[str, Any]:
    """Behind the port: also of a server that does not answer, and of a database that is closed."""
    return {
        f"{server}/{name}": {
            "owner": found.owner,
            "open": found.allows_connections,
            "mark": found.mark,
            "content": found.fingerprint.model_dump(mode="json"),
        }
        for server, known in sorted(ports.postgres.servers.items())
        for name, found in sorted(known.databases.items())
    }


def _tables(ports: World) -> dict[str, Any]:
    """Those that a test, or a rescue, has given content. By name of their database: oids differ."""
    names = {
        found.oid: f"{server}/{name}"
        for server, known in ports.postgres.servers.items()
        for name, found in known.databases.items()
    }
    return {
        f"{names.get(oid, 'gone')}/{table}": (table_of.mark, dict(sorted(table_of.rows.items())))
        for (oid, table), table_of in sorted(ports.tables.known.items(), key=lambda item: str(item[0][1]))
    }


def _refs(ports: Ports) -> list[WorkloadRef]:
    return sorted({ref for service in ports.site.services.values() for ref in service.workloads})


async def _workloads(ports: Ports) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ref in _refs(ports):
        facts = await ports.cluster.workload(ref)
        found[str(ref)] = facts and {
            "replicas": facts.replicas,
            "ready": facts.ready,
            "recorded": facts.recorded,
            "mark": facts.mark,
            "restarted": facts.restarted,
            "suspended": facts.gitops and facts.gitops.suspended,
            "images": dict(facts.containers),
        }
    return found


async def _configs(ports: Ports) -> dict[str, Any]:
    return {
        service.config_map: dict(await ports.cluster.config(first.cluster, first.namespace, service.config_map))
        for service in ports.site.services.values()
        if service.config_map is not None
        for first in service.workloads[:1]
    }


def _catalogue(ports: World) -> dict[str, Any]:
    """Behind the port: also while the bucket does not answer."""
    return {
        f"{place}/{key}/{entry.manifest.id}": {
            "provenance": entry.manifest.provenance,
            "problem": entry.problem,
            "verified": entry.verified_at is not None,
            "pinned": entry.pinned,
            "held": (key, entry.manifest.id) in ports.backups.held,
            "content": entry.manifest.fingerprint.model_dump(mode="json"),
        }
        for place, entries in (("bucket", ports.backups.entries), ("copy", ports.backups.local))
        for (key, _), entry in sorted(entries.items())
    }


def _bases(ports: World) -> dict[str, Any]:
    return {
        f"{server}/{backup}": (
            entry.manifest.kind,
            entry.manifest.parent,
            entry.verified_at is not None,
            entry.pinned,
            (server, backup) in ports.physical.held,
            entry.whole_in,
        )
        for (server, backup), entry in sorted(ports.physical.entries.items())
    }


async def _objects(ports: Ports) -> list[str]:
    """Keys only: what is encrypted or signed anew has other bytes."""
    return [
        f"{bucket}/{facts.key}"
        for bucket in sorted(ports.site.buckets)
        for facts in sorted(await ports.objects.list(bucket, ""), key=lambda facts: facts.key)
        if not facts.key.startswith("recovery-point-pins/")  # notes of what counts no more stay
    ]
