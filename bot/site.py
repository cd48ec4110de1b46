"""The plan file's world, as the actions take it: references to addresses resolved, references to secrets kept."""

from __future__ import annotations

from datetime import timedelta

from actions.ports import Secrets
from actions.site import (
    BackupPolicy,
    Bucket,
    ClusterAccess,
    Database,
    Invariant,
    JobClaim,
    JobPlace,
    JobSecret,
    PhysicalPolicy,
    ScratchBudget,
    Server,
    Service,
    Site,
    WorkloadRef,
)
from bot.plan_file import LOCAL, DatabaseBackup, DrPlan, is_reference, parse_bytes


async def site_of(plan: DrPlan, secrets: Secrets) -> Site:
    """Raises UserError when a reference to an address cannot be resolved."""

    async def text(value: str | None) -> str | None:
        return await secrets.resolve(value) if value is not None and is_reference(value) else value

    async def required(value: str) -> str:
        return await secrets.resolve(value) if is_reference(value) else value

    services: dict[str, Service] = {}
    for service in plan.services:
        services[service.name] = Service(
            name=service.name,
            workloads=tuple(
                WorkloadRef(service.cluster, plan.namespace(service), workload.kind, workload.name)
                for workload in sorted(service.workloads, key=lambda item: item.order)
            ),
            health_url=await text(service.health_url),
            database_dsn=service.database_check,
            config_map=service.config_map.name if service.config_map else None,
            config_key=service.config_map.key if service.config_map else "DATABASE_HOST",
        )
    buckets: dict[str, Bucket] = {}
    for bucket in plan.buckets:
        buckets[bucket.name] = Bucket(
            name=bucket.name,
            endpoint=await text(bucket.endpoint),
            region=await required(bucket.region),
            access_key=bucket.access_key or "",
            secret_key=bucket.secret_key or "",
        )
    return Site(
        servers={
            server.name: Server(
                name=server.name, admin_dsn=server.admin_dsn, tools=server.tools, host=await text(server.host)
            )
            for server in plan.servers
        },
        databases={database.name: _database(plan, database.name) for database in plan.databases},
        services=services,
        buckets=buckets,
        clusters={
            cluster.name: ClusterAccess(name=cluster.name, kubeconfig=cluster.kubeconfig or "", context=cluster.context)
            for cluster in plan.clusters
        },
        jobs=_jobs(plan),
        backups={item.database: await _policy(plan, item.database, secrets) for item in plan.backups.databases},
        physical={
            plan.database(item.database).server: await _physical(plan, item, secrets)
            for item in plan.backups.databases
            if item.base is not None
        },
        scratch=ScratchBudget(
            disk=parse_bytes(plan.backups.scratch.disk),
            instances=plan.backups.scratch.instances,
            lifetime=plan.backups.scratch.lifetime,
        ),
    )


def _jobs(plan: DrPlan) -> JobPlace | None:
    found = plan.jobs
    if found is None:
        return None
    return JobPlace(
        cluster=found.cluster,
        namespace=found.namespace,
        image=found.image,
        plan_config_map=found.plan_config_map,
        service_account=found.service_account or "",
        claims=tuple(JobClaim(name=claim.name, path=claim.path) for claim in found.claims),
        secrets=tuple(
            JobSecret(name=secret.name, path=secret.path or "", kinds=tuple(kind.value for kind in secret.kinds))
            for secret in found.secrets
        ),
        cpu=found.cpu,
        memory=found.memory,
        ephemeral_storage=found.ephemeral_storage,
        keep_finished=found.keep_finished,
    )


def _database(plan: DrPlan, name: str) -> Database:
    item = plan.database(name)
    rtos = [scenario.rto for scenario in plan.scenarios if scenario.name == "database_corruption"]
    return Database(
        name=item.name,
        server=item.server,
        owner=item.owner,
        service=item.application,
        spare_server=item.spare_server,
        invariants=tuple(Invariant(name=each.name, sql=each.sql) for each in item.invariants),
        quarantine=timedelta(days=item.quarantine_days),
        restore_jobs=item.restore_jobs,
        rpo=plan.objectives.rpo,
        rto=min([plan.objectives.rto, *rtos]),
    )


async def _policy(plan: DrPlan, database: str, secrets: Secrets) -> BackupPolicy:
    item = plan.backup_of(database)
    remote = [store for store in item.dump.stores if store != LOCAL]
    bucket = plan.bucket(remote[0])

    return BackupPolicy(
        database=database,
        bucket=bucket.name,
        prefix=f"{bucket.prefix}dumps/",
        local_directory=await _text(plan.backups.local_directory, secrets) if LOCAL in item.dump.stores else None,
        recipients=tuple([await _text(each, secrets) for each in plan.backups.recipients]),
        identity=plan.backups.identity or "",
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple([await _text(each, secrets) for each in plan.backups.signers]),
        retention=item.dump.retention,
        schedule=item.dump.schedule,
    )


async def _physical(plan: DrPlan, item: DatabaseBackup, secrets: Secrets) -> PhysicalPolicy:
    base, incremental, wal = item.base, item.incremental, item.wal
    if base is None:
        raise ValueError(f"{item.database} has no base backup")
    server = plan.database(item.database).server
    bucket = plan.bucket(base.stores[0])
    return PhysicalPolicy(
        server=server,
        engine=base.engine,
        bucket=bucket.name,
        prefix=f"{bucket.prefix}physical/",
        wal_buckets=wal.stores if wal else (),
        open_bucket=wal.open_store or "" if wal else "",
        recipients=tuple([await _text(each, secrets) for each in plan.backups.recipients]),
        identity=plan.backups.identity or "",
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple([await _text(each, secrets) for each in plan.backups.signers]),
        full_schedule=base.schedule,
        incremental_every=incremental.every if incremental else None,
        full_retention=base.retention,
        incremental_retention=incremental.retention if incremental else base.retention,
        wal_retention=wal.retention if wal else base.retention,
        minimum_fulls=base.minimum,
        slot=wal.slot if wal else "",
        synchronous=wal.synchronous if wal else False,
        stanza=base.stanza or server,
        stanza_config=base.stanza_config or "",
        stanza_secrets={secret.option: secret.value for secret in base.stanza_secrets},
    )


async def _text(value: str, secrets: Secrets) -> str:
    return await secrets.resolve(value) if is_reference(value) else value
