"""What signers of a restore should know. Pure: a scene in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from actions.backup.manifest import Provenance
from actions.contract import Finding, Verdict
from actions.ports import CatalogueEntry
from actions.steps.choice import loss, loss_sentence
from actions.steps.facts import CLOSED
from actions.steps.phrases import moment, names, size, span
from actions.steps.scene import Scene, others_work


def restore_findings(scene: Scene, new_names: Iterable[str]) -> tuple[Finding, ...]:
    """All findings, those that stop the plan first."""
    found = [*_backup(scene), *_target(scene, tuple(new_names)), *_place(scene), *_application(scene)]
    order = [Verdict.STOP, Verdict.WARN, Verdict.OK]
    return tuple(sorted(found, key=lambda finding: order.index(finding.verdict)))


def since_impact(entry: CatalogueEntry, began: datetime | None) -> Iterator[Finding]:
    """A backup from after the impact began may hold the damage; every comparison would pass."""
    taken = entry.manifest.snapshot_at
    if began is not None and taken >= began:
        yield _warn(
            "damage",
            f"Backup `{entry.manifest.id}` was taken at {moment(taken)}, after the impact began at {moment(began)}: it "
            "may hold the damage.",
            "Look into it first, or choose one from before.",
        )


def _backup(scene: Scene) -> Iterator[Finding]:
    entry, manifest = scene.entry, scene.entry.manifest
    if entry.problem is not None:
        yield _stop(
            "backup",
            f"Backup `{manifest.id}` must not be used: {entry.problem}",
            "Choose another one of `/dr-backup list`.",
        )
    if manifest.provenance is Provenance.ADOPTED:
        yield _warn("backup", f"Backup `{manifest.id}` was adopted: nobody attests what it held when it was made.", "")
    elif scene.home is not None and manifest.system_id != scene.home.server.system_id:
        yield _warn(
            "origin",
            f"Backup `{manifest.id}` was made of a server with system id {manifest.system_id}, `{manifest.server}` has "
            f"{scene.home.server.system_id} now.",
            "That is so once the server was replaced; else look which one the plan file named when it was made.",
        )
    lost = loss(entry, scene.now)
    verdict = Verdict.WARN if lost > scene.database.rpo else Verdict.OK
    yield Finding(check="data loss", verdict=verdict, detail=loss_sentence(scene.database, entry, scene.now))
    owner = next((role for role in manifest.globals.roles if role.name == scene.database.owner), None)
    if owner is not None and owner.superuser:
        yield _stop(
            "owner",
            f"Role `{owner.name}` is a superuser; code in a dump would run with all rights.",
            "Name an unprivileged `owner` for the database in the plan file.",
        )


def _target(scene: Scene, new_names: tuple[str, ...]) -> Iterator[Finding]:
    target = scene.target
    server, manifest = target.server, scene.entry.manifest
    if server.in_recovery:
        yield _stop("server", f"Server `{server.name}` is a standby and cannot be written to.", "Promote it first.")
    if target.closed:
        yield _stop("server", CLOSED.format(server.name), "")
    if server.version // 10000 < manifest.server_version // 10000:
        yield _stop(
            "version",
            f"Server `{server.name}` is PostgreSQL {server.version // 10000}, the dump is of PostgreSQL "
            f"{manifest.server_version // 10000}: a dump is not loaded into an older version.",
            "Restore on a server of the same or a newer version.",
        )
    taken = sorted(name for name in new_names if target.database(name) is not None)
    if taken:
        yield _stop(
            "names",
            f"{names(taken)} exists on `{server.name}` already.",
            "Rename it, then ask for a new plan; this product drops nothing.",
        )
    old = [facts for facts in others_work(target.databases, scene.database.name) if facts.name not in taken]
    if old:
        total = size(sum(facts.bytes for facts in old))
        yield _warn(
            "left over",
            f"{names(facts.name for facts in old)} of earlier plans are kept on `{server.name}`, {total}.",
            "",
        )
    yield from _disk(scene)


def _disk(scene: Scene) -> Iterator[Finding]:
    server = scene.target.server
    if server.free_bytes is None:
        yield _warn(
            "disk",
            f"Server `{server.name}` does not tell how much disk is free; the copy needs {size(scene.disk_needed)}.",
            "Look with `df` on the server before you sign.",
        )
    elif server.free_bytes < scene.disk_needed:
        yield _stop(
            "disk",
            f"Server `{server.name}` has {size(server.free_bytes)} of disk free, the copy needs "
            f"{size(scene.disk_needed)}.",
            "Free or add disk, or name a `spare_server` with room in the plan file.",
        )


def _place(scene: Scene) -> Iterator[Finding]:
    if scene.elsewhere and not scene.on_spare:
        if scene.suspect:
            yield _stop(
                "server",
                f"{scene.elsewhere} The plan file names no spare server for `{scene.key}`.",
                "Add `spare_server` to the database in the plan file, or ask again without calling the server suspect.",
            )
        return  # too little disk is a finding of its own
    if scene.on_spare:
        server = scene.target.server
        yield _warn("server", f"{scene.elsewhere} The restore goes to `{server.name}` ({server.address}).", "")
        yield _warn(
            "login",
            f"Roles made by a restore cannot log in: the application needs its password on `{server.name}`.",
            f"Check with the application's own login on `{server.name}` before you sign.",
        )
    if scene.production is None and scene.home is not None:
        yield _warn("database", f"Database `{scene.database.ref}` does not exist now; the copy takes its name.", "")
    production = scene.production
    if production is not None and production.owner != scene.database.owner:
        yield _warn(
            "owner",
            f"`{scene.database.ref}` is owned by `{production.owner}`, the copy will be by `{scene.database.owner}`.",
            "",
        )


def _application(scene: Scene) -> Iterator[Finding]:
    application = scene.application
    if application is None:
        yield _warn(
            "application",
            f"The plan file names no service for `{scene.key}`: nothing is stopped or checked.",
            "Stop what writes to it yourself, or name its `service` in the plan file.",
        )
        return
    for ref in application.missing:
        yield _warn("application", f"{ref} does not exist: it is neither stopped nor started.", "")
    for facts in application.workloads:
        if facts.recorded is not None and facts.replicas:
            yield _warn(
                "application",
                f"{facts.ref} was stopped by plan `{facts.mark}` and scaled by others since; it gets back the "
                f"{facts.replicas} replicas it has now.",
                "",
            )
        elif facts.recorded is not None:
            yield _warn(
                "application",
                f"{facts.ref} was stopped by plan `{facts.mark}`; it is started with its {facts.recorded} replicas.",
                "",
            )
    if scene.on_spare:
        yield from _repointing(scene)
    elif application.service.database_dsn is None and application.service.health_url is None:
        yield _warn(
            "check",
            f"The plan file names neither a connection nor a health address of `{application.service.name}`.",
            "Look at the application yourself after the run.",
        )


def _repointing(scene: Scene) -> Iterator[Finding]:
    application = scene.application
    server = scene.target.server
    if application is None or not scene.repointable:
        yield _warn(
            "repoint",
            f"It is not known how the application finds its database: the copy stays on `{server.name}` unused.",
            "Point the application there by hand, or name `config_map` in the plan file.",
        )
        return
    if application.service.health_url is None and application.service.database_dsn is None:
        yield _warn(
            "check",
            f"The plan file names neither a connection nor a health address of `{application.service.name}`: that it "
            f"works on `{server.name}` is not checked, and the run succeeds without it.",
            "Look at the application yourself after the run, or name `health_url` in the plan file first.",
        )
    if scene.config_value is None:
        key, config_map = application.service.config_key, application.service.config_map
        yield _stop("repoint", f"ConfigMap `{config_map}` has no `{key}`.", "Correct `config_map` in the plan file.")
    elif (
        scene.target.host is None
        and ":" not in scene.config_value
        and _port(server.address) != _port(scene.home_address)
    ):
        yield _warn(
            "port",
            f"`{server.name}` listens on {server.address}, the ConfigMap holds the host alone.",
            "See that the application's port fits, or its check fails and all is put back.",
        )
    if any(facts.gitops is not None for facts in application.workloads):
        yield _warn(
            "GitOps",
            "Its controllers stay suspended: resumed, they would point the application back.",
            f"Commit the new host to the repository, then `/dr app resume {application.service.name} --reason "
            f'"..."`. The old server keeps its data, closed, for '
            f"{span(scene.database.quarantine)} at least.",
        )


def _port(address: str) -> str:
    return address.rpartition(":")[2] if ":" in address else "5432"


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)
