"""The plan file's world, as the actions take it: references to addresses resolved, references to secrets kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from actions.errors import UserError
from actions.ports import Secrets
from actions.site import (
    BackupPolicy,
    Bucket,
    BucketPosture,
    ClusterAccess,
    Database,
    EscrowPolicy,
    EvidencePolicy,
    FilesPolicy,
    ImagesPolicy,
    Invariant,
    JobClaim,
    JobPlace,
    JobSecret,
    LockMode,
    ManifestsPolicy,
    PhysicalPolicy,
    PointsPolicy,
    ScratchBudget,
    Server,
    Service,
    Site,
    WorkloadKind,
    WorkloadRef,
)
from bot.plan_file import (
    LOCAL,
    DatabaseBackup,
    DrPlan,
    FileBackup,
    ManifestsRepository,
    ProvenBy,
    ServerWorkload,
    is_reference,
    parse_bytes,
    parse_ports,
)


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
            prover_access_key=bucket.prover_access_key or "",
            prover_secret_key=bucket.prover_secret_key or "",
            posture=_posture(plan, bucket.name),
        )
    return Site(
        servers={
            server.name: Server(
                name=server.name,
                admin_dsn=server.admin_dsn,
                tools=server.tools,
                host=await text(server.host),
                workload=_workload(plan, server.workload),
            )
            for server in plan.servers
        },
        databases={database.name: _database(plan, database.name) for database in plan.databases},
        services=services,
        buckets=buckets,
        clusters={
            cluster.name: ClusterAccess(
                name=cluster.name,
                kubeconfig=cluster.kubeconfig or "",
                context=cluster.context,
                sealed_secrets=cluster.sealed_secrets or "",
            )
            for cluster in plan.clusters
        },
        jobs=_jobs(plan),
        prover_apart=plan.backups.prover is ProvenBy.APART,
        backups={item.database: await _policy(plan, item.database, secrets) for item in plan.backups.databases},
        physical={
            plan.database(item.database).server: await _physical(plan, item, secrets)
            for item in plan.backups.databases
            if item.base is not None
        },
        files={item.called: await _files(plan, item, secrets) for item in plan.backups.brought_back},
        escrow=await _escrow(plan, secrets),
        evidence=await _evidence(plan, secrets),
        manifests={item.name: await _manifests(plan, item, secrets) for item in plan.backups.manifests},
        images=_images(plan),
        points=await _points(plan, secrets),
        scratch=ScratchBudget(
            disk=parse_bytes(plan.backups.scratch.disk),
            instances=plan.backups.scratch.instances,
            lifetime=plan.backups.scratch.lifetime,
            advertised_host=plan.backups.scratch.advertised_host or "",
            ports=parse_ports(plan.backups.scratch.ports) if plan.backups.scratch.ports else None,
        ),
    )


def _workload(plan: DrPlan, found: ServerWorkload | None) -> WorkloadRef | None:
    if found is None:
        return None
    namespace = found.namespace or plan.cluster(found.cluster).namespace
    return WorkloadRef(found.cluster, namespace, WorkloadKind(found.kind), found.name)


def _posture(plan: DrPlan, name: str) -> BucketPosture:
    bucket = plan.bucket(name)
    versions = [item.retention for item in plan.backups.files if item.versions and item.bucket == name]
    here = [(what, retention) for what, retention, stores in _stored(plan) if name in stores]
    kept: dict[str, timedelta] = {}
    for what, retention in here:
        if retention is not None:
            kept[what] = max(retention, kept.get(what, retention))
    prefixes = [bucket.prefix] if here else []
    # Pieces of the segment that is not full yet lie under the prefix of the base backups.
    prefixes += [
        plan.bucket(item.base.stores[0]).prefix
        for item in plan.backups.databases
        if item.base is not None and item.wal is not None and item.wal.open_store == name
    ]
    return BucketPosture(
        purpose=bucket.purpose,
        versioning=bucket.versioning,
        object_lock=LockMode(bucket.object_lock),
        locks_for=bucket.object_lock_for,
        kept=kept,
        encryption=bucket.encryption or "",
        replicates_to=bucket.replicates_to or "",
        keep_versions=max((timedelta.max if each == "forever" else each for each in versions), default=None),
        used=tuple(dict.fromkeys(prefixes)),
    )


def _stored(plan: DrPlan) -> Iterator[tuple[str, timedelta | None, Sequence[str]]]:
    """What the bot stores, how long it keeps it (None: it deletes none of it), and in which buckets."""
    backups = plan.backups
    for item in backups.databases:
        parts = {"dumps": item.dump, "base backups": item.base, "incrementals": item.incremental, "WAL": item.wal}
        yield from ((what, part.retention, part.stores) for what, part in parts.items() if part is not None)
    if (points := backups.recovery_points) is not None:
        yield "recovery points", points.retention or backups.longest, (points.bucket,)
    if (escrow := backups.escrow) is not None:
        yield "escrows", escrow.retention or backups.longest, (escrow.bucket,)
    for files in backups.files:
        if files.copy_to is not None:
            retention = None if files.retention == "forever" else files.retention
            yield "copies of files", retention, (files.copy_to.bucket,)
    for repository in backups.manifests:
        yield "mirrors of manifests", None, (repository.bucket,)
    if plan.evidence is not None:
        yield "evidence", None, (plan.evidence.bucket,)


async def _files(plan: DrPlan, item: FileBackup, secrets: Secrets) -> FilesPolicy:
    copy = item.copy_to
    if item.bucket is None or (copy is not None and item.retention == "forever"):
        raise UserError(f"The files `{item.called}` need a `bucket`, and a `retention` in days where they are copied.")
    return FilesPolicy(
        name=item.called,
        component=item.component,
        bucket=item.bucket,
        prefix=item.prefix,
        copy_bucket="" if copy is None else copy.bucket,
        copy_prefix="" if copy is None else plan.bucket(copy.bucket).prefix,
        schedule="" if copy is None else copy.schedule,
        retention=timedelta.max if item.retention == "forever" else item.retention,
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple(
            [await secrets.resolve(each) if is_reference(each) else each for each in plan.backups.signers]
        ),
    )


async def _escrow(plan: DrPlan, secrets: Secrets) -> EscrowPolicy | None:
    found = plan.backups.escrow
    if found is None:
        return None

    return EscrowPolicy(
        bucket=found.bucket,
        prefix=plan.bucket(found.bucket).prefix,
        schedule=found.schedule,
        retention=found.retention or plan.backups.longest,
        minimum=found.minimum,
        recipients=await _resolved(plan.backups.recipients, secrets),
        identity=found.identity or "",
        secrets=found.secrets,
        signing_key=plan.backups.signing_key,
        trusted_signers=await _resolved(plan.backups.signers, secrets),
    )


async def _evidence(plan: DrPlan, secrets: Secrets) -> EvidencePolicy | None:
    if plan.evidence is None:
        return None
    recipients = await _resolved(plan.backups.recipients, secrets)
    bucket = plan.evidence.bucket
    return EvidencePolicy(bucket=bucket, prefix=plan.bucket(bucket).prefix, recipients=recipients)


async def _resolved(values: Sequence[str], secrets: Secrets) -> tuple[str, ...]:
    return tuple([await secrets.resolve(each) if is_reference(each) else each for each in values])


async def _manifests(plan: DrPlan, item: ManifestsRepository, secrets: Secrets) -> ManifestsPolicy:
    return ManifestsPolicy(
        name=item.name,
        url=item.url,
        branch=item.branch,
        path=item.path,
        cluster=item.cluster or "",
        namespace=item.namespace,
        username=item.username or "",
        password=item.password or "",
        push=item.push or "",
        bucket=item.bucket,
        prefix=plan.bucket(item.bucket).prefix,
        every=item.every,
        recipients=tuple([await _text(each, secrets) for each in plan.backups.recipients]),
        identity=plan.backups.identity or "",
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple([await _text(each, secrets) for each in plan.backups.signers]),
    )


def _images(plan: DrPlan) -> ImagesPolicy | None:
    found = plan.backups.images
    if found is None:
        return None
    return ImagesPolicy(
        url=found.url,
        username=found.username or "",
        password=found.password or "",
        mirrors={mirror.beginning: mirror.becomes for mirror in found.mirrors},
        retention=found.retention,
    )


async def _points(plan: DrPlan, secrets: Secrets) -> PointsPolicy | None:
    found = plan.backups.recovery_points
    if found is None:
        return None
    signers = [await secrets.resolve(each) if is_reference(each) else each for each in plan.backups.signers]
    return PointsPolicy(
        bucket=found.bucket,
        prefix=plan.bucket(found.bucket).prefix,
        every=found.every,
        retention=found.retention or plan.backups.longest,
        minimum=found.minimum,
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple(signers),
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
        prover_service_account=found.prover_service_account or "",
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
        invariants=tuple(Invariant(name=each.name, sql=each.sql, expect=each.expect or "") for each in item.invariants),
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
        prover_identity=plan.backups.prover_identity or "",
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple([await _text(each, secrets) for each in plan.backups.signers]),
        proof_signing_key=plan.backups.proof_signing_key or "",
        proof_signers=await _resolved(plan.backups.proof_signers, secrets),
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
        copy_bucket=base.stores[1] if len(base.stores) > 1 else "",
        prefix=f"{bucket.prefix}physical/",
        wal_buckets=wal.stores if wal else (),
        open_bucket=wal.open_store or "" if wal else "",
        recipients=tuple([await _text(each, secrets) for each in plan.backups.recipients]),
        identity=plan.backups.identity or "",
        prover_identity=plan.backups.prover_identity or "",
        signing_key=plan.backups.signing_key,
        trusted_signers=tuple([await _text(each, secrets) for each in plan.backups.signers]),
        proof_signing_key=plan.backups.proof_signing_key or "",
        proof_signers=await _resolved(plan.backups.proof_signers, secrets),
        full_schedule=base.schedule,
        incremental_every=incremental.every if incremental else None,
        full_retention=base.retention,
        incremental_retention=incremental.retention if incremental else base.retention,
        wal_retention=wal.retention if wal else base.retention,
        minimum_fulls=base.minimum,
        amcheck=base.amcheck,
        slot=wal.slot if wal else "",
        standbys=tuple(each.name for each in plan.servers if each.standby_of == server) if wal else (),
        synchronous=wal.synchronous if wal else False,
        own=base.own(),
    )


async def _text(value: str, secrets: Secrets) -> str:
    return await secrets.resolve(value) if is_reference(value) else value
