"""The plan file of the demo: the customer's rules, with the addresses of the servers that were just started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from actions.site import WorkloadKind
from bot.demo.dataset import DATABASE, OWNER
from bot.demo.keys import Keys
from bot.demo.people import DANIEL, OLIVIA, SELMA, Account
from bot.demo.seaweedfs import WITNESS_BUCKET
from bot.plan_file import (
    LOCAL,
    Approval,
    ApprovalRule,
    Backups,
    BaseBackup,
    BreakGlass,
    Bucket,
    BucketPurpose,
    Channels,
    Cluster,
    ConfigMapKey,
    Contact,
    Database,
    DatabaseBackup,
    Drill,
    DrPlan,
    DumpBackup,
    IncrementalBackup,
    Invariant,
    Objectives,
    ObjectLock,
    Person,
    PlanStep,
    Record,
    RecoveryPoints,
    Risk,
    Runbook,
    Scenario,
    ScratchLimits,
    Server,
    ServerRole,
    Service,
    Slot,
    WalArchive,
    WitnessPlace,
    Workload,
)

NAMESPACE = "production"
SERVICE = "superprismora"
CLUSTER = "production"
BUCKET = "superprismora-backups"
CONFIG_MAP = "superprismora-config"
API, WORKER, CLOSE_DAY = "superprismora-api", "superprismora-worker", "superprismora-close-day"


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """Where checkpoints of the record are kept: a file, and a bucket under Object Lock with an account of its own."""

    file: Path
    access_key: Path
    secret_key: Path


_HOUR = timedelta(hours=1)
_ALONE = BreakGlass(delay=timedelta(minutes=1), review_within=_HOUR)


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the demo's servers are. Every `Path` is a file with one secret, 0600."""

    workspace: str
    channel: str
    production_dsn: Path
    production_host: str
    spare_dsn: Path
    spare_host: str
    application_dsn: Path
    health_url: str
    kubeconfig: Path
    namespace: str = NAMESPACE  # of the application
    s3_endpoint: str
    s3_access_key: Path
    s3_secret_key: Path
    copies: Path
    keys: Keys
    pager: Path | None = None  # None: nobody is told outside Slack, so nobody may act alone
    witnesses: Witnesses | None = None  # None: the record is not sealed, and destructive plans run all the same


def demo_plan(at: Addresses) -> DrPlan:
    """The whole plan. Every secret in it is a reference to a file."""
    return DrPlan(
        version=1,
        name="Super_Prismora Disaster Recovery Plan (demo)",
        owner="Operations Team",
        workspace=at.workspace,
        channels=Channels(on_call=at.channel, audit=at.channel),
        objectives=Objectives(
            rpo=timedelta(minutes=15),
            rpo_by="WAL, archived as it is written",
            rto=timedelta(hours=1),
            rto_by="Automated restore beside production",
            integrity=("Zero data corruption tolerance", "Checksum validation on all restores"),
        ),
        scenarios=_scenarios(),
        servers=(
            Server(name="primary", admin_dsn=_file(at.production_dsn), host=at.production_host),
            Server(name="secondary", role=ServerRole.SPARE, admin_dsn=_file(at.spare_dsn), host=at.spare_host),
        ),
        databases=(_database(),),
        clusters=(Cluster(name=CLUSTER, kubeconfig=_file(at.kubeconfig), namespace=at.namespace),),
        services=(_service(at),),
        buckets=(
            Bucket(
                name=BUCKET,
                purpose=BucketPurpose.BACKUPS,
                region="us-east-1",
                endpoint=at.s3_endpoint,
                prefix="backups/",
                versioning=False,
                access_key=_file(at.s3_access_key),
                secret_key=_file(at.s3_secret_key),
            ),
            *_witness_bucket(at),
        ),
        backups=Backups(
            local_directory=str(at.copies),
            recipients=(at.keys.recipient, at.keys.prover, at.keys.custodian),
            identity=_file(at.keys.identity),
            prover_identity=_file(at.keys.prover_identity),
            signing_key=_file(at.keys.signing_key),
            signers=(at.keys.signer,),
            databases=(_copies(),),
            recovery_points=RecoveryPoints(bucket=BUCKET, every=timedelta(minutes=15), retention=timedelta(days=30)),
            scratch=ScratchLimits(disk="20Gi"),
        ),
        record=_record(at),
        pager=None if at.pager is None else _file(at.pager),
        approval=Approval(
            rules=_rules(),
            break_glass=None if at.pager is None else _ALONE,
            unwitnessed=at.witnesses is None,
        ),
        roster=(
            _person(at, OLIVIA, "on_call", "operator", "incident_commander"),
            _person(at, DANIEL, "dba", "operator"),
            _person(at, SELMA, "security"),
        ),
        contacts=(
            Contact(role="Primary On-Call", name=OLIVIA.name, phone="TBD", email=OLIVIA.email, person=OLIVIA.person),
            Contact(role="Database Admin", name=DANIEL.name, phone="TBD", email=DANIEL.email, person=DANIEL.person),
        ),
        drills=_drills(),
        runbooks=(
            Runbook(
                name="database-restore",
                title="Database Recovery from Full Backup",
                section="4.1",
                scenarios=("database_corruption", "accidental_deletion"),
                steps=(PlanStep(text="Restore the newest good dump beside production", action="restore.dump"),),
            ),
        ),
    )


def _drills() -> tuple[Drill, ...]:
    """The monthly restore test, which the bot runs by itself, and one that people hold."""
    return (
        Drill(
            name="backup-restore",
            title="Backup Restore",
            frequency="Monthly",
            schedule="1st mon 09:00 UTC",
            action="backup.prove",
            steps=(PlanStep(text="`/dr-backup prove superprismora`", action="backup.prove"),),
        ),
        Drill(
            name="deletion",
            title="Accidental Deletion",
            frequency="Quarterly",
            schedule="15 of jan,apr,jul,oct 09:00 UTC",
            steps=(
                PlanStep(text="Drop a table: `.venv/bin/drbot demo damage --kind drop-table`"),
                PlanStep(text="`/dr-restore superprismora --before-drop TABLE`", action="restore.point"),
                PlanStep(text="`/dr-restore rescue SCRATCH TABLE`", action="restore.rescue"),
            ),
        ),
    )


def _copies() -> DatabaseBackup:
    month, week = timedelta(days=30), timedelta(days=7)
    return DatabaseBackup(
        database=DATABASE,
        dump=DumpBackup(schedule="02:00 UTC", retention=month, stores=(LOCAL, BUCKET)),
        base=BaseBackup(schedule="02:30 UTC", retention=month, stores=(BUCKET,)),
        incremental=IncrementalBackup(every=timedelta(minutes=15), retention=week, stores=(BUCKET,)),
        wal=WalArchive(retention=week, stores=(BUCKET,), open_store=BUCKET),
    )


def _witness_bucket(at: Addresses) -> tuple[Bucket, ...]:
    if at.witnesses is None:
        return ()
    return (
        Bucket(
            name=WITNESS_BUCKET,
            purpose=BucketPurpose.WITNESS,
            region="us-east-1",
            endpoint=at.s3_endpoint,
            access_key=_file(at.witnesses.access_key),
            secret_key=_file(at.witnesses.secret_key),
            object_lock=ObjectLock.COMPLIANCE,
        ),
    )


def _record(at: Addresses) -> Record | None:
    if at.witnesses is None:
        return None
    return Record(
        signing_key=_file(at.keys.record_key),
        public_keys=(at.keys.record,),
        keep=timedelta(days=1),
        witnesses=(
            WitnessPlace(name="vault", bucket=WITNESS_BUCKET),
            WitnessPlace(name="local", file=str(at.witnesses.file)),
        ),
    )


def _file(path: Path) -> str:
    return f"file:{path}"


def _person(at: Addresses, account: Account, *roles: str) -> Person:
    return Person(
        id=account.person,
        name=account.name,
        roles=roles,
        slack_ids=(account.slack_id,),
        keys=(at.keys.people[account.person],),
        email=account.email,
    )


def _scenarios() -> tuple[Scenario, ...]:
    return (
        Scenario(
            name="database_corruption",
            title="Database Corruption",
            impact="Database is corrupted or infected",
            rto=timedelta(minutes=30),
            steps=(
                PlanStep(text="`/dr-restore superprismora` restores the last known good dump", action="restore.dump"),
                PlanStep(text="Verify data integrity"),
            ),
        ),
        Scenario(
            name="accidental_deletion",
            title="Accidental Deletion",
            impact="Data or resources deleted",
            rto=timedelta(minutes=15),
            steps=(
                PlanStep(
                    text="`/dr-restore find superprismora TABLE` finds the moment; where no base backup is from before "
                    "it, `/dr-restore superprismora` restores the newest dump",
                    action="restore.point",
                ),
                PlanStep(text="`/dr-restore rescue SCRATCH TABLE` brings it back", action="restore.rescue"),
            ),
        ),
    )


def _database() -> Database:
    return Database(
        name=DATABASE,
        server="primary",
        owner=OWNER,
        application=SERVICE,
        spare_server="secondary",
        quarantine_days=7,
        restore_jobs=2,
        invariants=(
            Invariant(name="users", sql="SELECT count(*) FROM users", description="Every user is there again"),
            Invariant(
                name="usable_addresses",
                sql="SELECT count(*) FROM users WHERE position('@' IN email) > 0",
                description="Their addresses can be used",
            ),
            Invariant(name="revenue", sql="SELECT sum(total_cents) FROM orders", description="No order lost its total"),
        ),
    )


def _service(at: Addresses) -> Service:
    return Service(
        name=SERVICE,
        cluster=CLUSTER,
        workloads=(
            Workload(kind=WorkloadKind.DEPLOYMENT, name=API, writes_to=(DATABASE,), order=1),
            Workload(kind=WorkloadKind.DEPLOYMENT, name=WORKER, writes_to=(DATABASE,), order=2),
            Workload(kind=WorkloadKind.CRON_JOB, name=CLOSE_DAY, writes_to=(DATABASE,), order=3),
        ),
        health_url=at.health_url,
        database_check=_file(at.application_dsn),
        config_map=ConfigMapKey(name=CONFIG_MAP, key="DATABASE_HOST"),
    )


def _rules() -> tuple[ApprovalRule, ...]:
    long, short = timedelta(minutes=30), timedelta(minutes=15)
    return (
        ApprovalRule(risk=Risk.READ, persons_besides_requester=0, approval_expiry=long, execution_expiry=short),
        ApprovalRule(risk=Risk.REVERSIBLE, persons_besides_requester=0, approval_expiry=long, execution_expiry=short),
        ApprovalRule(risk=Risk.DISRUPTIVE, persons_besides_requester=1, approval_expiry=long, execution_expiry=short),
        ApprovalRule(
            risk=Risk.DESTRUCTIVE,
            persons_besides_requester=1,
            slots=(Slot(role="dba"),),
            approval_expiry=long,
            execution_expiry=short,
            typed_target=True,
        ),
        ApprovalRule(
            risk=Risk.IRREVERSIBLE,
            persons_besides_requester=2,
            slots=(Slot(role="dba"), Slot(role="security")),
            approval_expiry=long,
            execution_expiry=short,
            typed_target=True,
        ),
    )
