"""What an action may use, in the domain's words. Every port has a real adapter and one working in-memory fake
(`tests/fakes`), and one test module that both pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from actions.backup.dump_test import DumpLoaded, DumpTest
from actions.backup.manifest import Fingerprint, Globals, Manifest, SignedManifest
from actions.backup.physical import (
    BaseRequest,
    Check,
    Expiry,
    FindRequest,
    Lack,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
    RecoveryWindow,
    ScratchFacts,
    ScratchRequest,
    ScratchRestored,
    Serving,
    Uncopied,
)
from actions.backup.tables import Difference, Rescued, RescueRequest, TableFacts, TableName
from actions.bucket_ports import Buckets, Files
from actions.buckets import Hold
from actions.commits import Branches
from actions.escrow import Escrow
from actions.images import Registry
from actions.manifests import Manifests
from actions.points import Points
from actions.secret_copies import SecretCopies
from actions.site import DatabaseRef, Frozen, Invariant, SecretRef, Site, WorkloadRef

# ---------------------------------------------------------------- progress


class ProgressReport(Frozen):
    """Where a step stands. `total` is None while unknown; `unit` is "bytes", "rows" or "steps"."""

    done: int = 0
    total: int | None = None
    unit: str = "bytes"
    phase: str = ""


class Progress(Protocol):
    """Takes reports as often as they come; the receiver thins them out. Never raises, never blocks for long."""

    def __call__(self, report: ProgressReport, /) -> None: ...


def no_progress(report: ProgressReport, /) -> None:
    """For callers that show nothing."""


# ---------------------------------------------------------------- PostgreSQL


class ServerFacts(Frozen):
    """A server as it answers now. `free_bytes` is None where the server may not tell."""

    name: str
    version: int  # server_version_num
    system_id: str
    in_recovery: bool
    free_bytes: int | None = None
    address: str = ""  # host:port, for people
    timeline_id: int = 0  # that it writes; 0 in recovery
    started_at: datetime | None = None  # by its own clock, to the microsecond: no two servers started at the same one
    checksums: bool | None = None  # its pages bear checksums; None where nobody knows


class Pulse(StrEnum):
    """What is heard of a server from here, without a login."""

    ANSWERS = "answers"
    REFUSES = "refuses"  # everybody for now: it starts, recovers or shuts down; or us, whose TLS does not fit
    SILENT = "silent"  # nothing listens at its address
    UNREACHABLE = "unreachable"  # there is no way to its address, so nobody can tell


class StopFacts(Frozen):
    """How a server would go down, asked for by its administrator."""

    hindrance: str = ""  # why it cannot be asked from here; empty: it can
    directory: str = ""  # of its data; empty where the administrator may not know
    followers: tuple[str, ...] = ()  # who streams from it, as they call themselves: they get the last WAL first
    unarchived: int | None = None  # closed segments that wait for its archiver; None where that cannot be seen
    archiving_fails: bool = False


class FenceFacts(Frozen):
    """What could still write to a server besides its administrators."""

    read_only: bool  # by the server's own configuration, over restarts
    open: tuple[str, ...] = ()  # databases that let people in
    sessions: int = 0  # of others, in any database
    workers: tuple[str, ...] = ()  # those of them that no client has opened: `pg_cron launcher` in `postgres`
    home: str = ""  # the administrator's own database, which lets nobody else in once its limit is 0
    limit: int = -1  # of connections to it; -1 is none

    @property
    def holds(self) -> bool:
        return self.read_only and not self.open and not self.sessions


COMES_BACK = (
    "What the server itself starts comes back each time it is ended. Disable its subscription (`ALTER SUBSCRIPTION ... "
    "DISABLE`); a worker of an extension such as pg_cron: take it out of `shared_preload_libraries` and restart that "
    "server; or stop the whole server there (`pg_ctl stop -m fast`) and ask with `--old-primary-is-dead`."
)
"""What to do where a fence does not hold for what nobody outside has opened."""


class Named(NamedTuple):
    """A database of one server, told from another one that is given its name meanwhile."""

    name: str
    oid: int


class DatabaseFacts(Frozen):
    """A database as it is now."""

    name: str
    oid: int
    owner: str
    bytes: int
    allows_connections: bool
    sessions: int
    mark: str = ""  # our note (a COMMENT ON DATABASE): which plan made it, or set it aside


class RoleFacts(Frozen):
    """A short-lived role that a load has made."""

    name: str
    mark: str  # which plan made it (a COMMENT ON ROLE); empty when nobody says
    sessions: int


class PostgresAdmin(Protocol):
    """An administrator's view of all servers of the site. Database names are taken literally, never as SQL."""

    async def server(self, server: str) -> ServerFacts: ...

    async def database(self, database: DatabaseRef) -> DatabaseFacts | None: ...

    async def databases(self, server: str) -> Sequence[DatabaseFacts]: ...

    async def fingerprint(
        self, database: DatabaseRef, invariants: Sequence[Invariant], *, counted: Callable[[int], None] | None = None
    ) -> Fingerprint:
        """Measure what the database holds. `counted` is told the rows of each table that is done."""

    async def create(self, database: DatabaseRef, *, owner: str, cluster_globals: Globals, mark: str) -> None:
        """Create the database (template0) with its owner and mark, and the roles of `cluster_globals` that are
        missing (NOLOGIN, no password). A database of that name with the same mark is left as it is; with another
        mark: UserError."""

    async def close(self, database: DatabaseRef) -> int:
        """Refuse new connections and end the sessions; return how many were ended once none is left.
        Raises TemporaryError when sessions are still there after 30 s."""

    async def open(self, database: DatabaseRef) -> None:
        """Let connections in again."""

    async def fencing(self, server: str) -> FenceFacts:
        """How the server stands now. Changes nothing."""

    async def fence(self, server: str) -> int:
        """Let nobody but administrators write from now on, over restarts: transactions read only, every database
        closed, every session ended; how many were. Data is not touched, standbys and archivers go on.
        Raises TemporaryError, naming them, when sessions are still there after 30 s."""

    async def unfence(self, server: str, *, closed: Sequence[str], limit: int) -> None:
        """Undo `fence`; the databases in `closed` stay closed, the administrator's own gets its limit back."""

    async def pulse(self, server: str) -> Pulse: ...

    async def clients(self, database: DatabaseRef, role: str, *, within: timedelta = timedelta(0)) -> int:
        """How many sessions of this role are in the database; of everybody but superusers where it is empty. The bot's
        own never count. While there are none it is looked at again and again for `within`: an application that connects
        for each question is seen in the middle of one. A database that is not there has none."""

    async def stopping(self, server: str) -> StopFacts:
        """What asking the server to shut down would meet. Changes nothing."""

    async def stop(self, server: str, *, started_at: datetime) -> None:
        """Ask the server itself for a clean, fast shutdown; it is asked when this returns, and ends in its own time.
        Nothing of its data is touched. Raises PreconditionError, and asks nothing, unless it is the very server that
        started then, no standby, and fenced; UserError or PermanentError when it does not let itself be asked."""

    async def swap(
        self, server: str, *, current: Named, replacement: Named, aside: str, mark: str, live_mark: str
    ) -> None:
        """In one transaction rename `current` to `aside` (closed, with `mark`) and `replacement` to `current` (open,
        with `live_mark`: what serves people must not go on carrying the mark of a scratch database).
        Refuses when another database has one of the names, or sessions are left; then nothing has changed."""

    async def relabel(self, database: DatabaseRef, *, before: str, after: str) -> None:
        """Change our mark. One that is `after` already is left; anything but `before`: PreconditionError."""

    async def discard(self, database: DatabaseRef, *, mark: str, idle: bool = False) -> None:
        """Drop a database this product made for scratch. Raises UserError unless it carries exactly this mark and the
        mark begins with `drbot:scratch:`. Sessions in it are ended, but with `idle` they keep it: TemporaryError."""

    async def loading_roles(self, server: str) -> Sequence[RoleFacts]:
        """The short-lived roles that loads have made on this server."""

    async def discard_role(self, server: str, name: str, *, mark: str) -> None:
        """Drop a short-lived role of a load; what it owns becomes the owner's of the database it is in. Raises
        UserError unless it is such a role with exactly this mark, TemporaryError while somebody is logged in as it."""

    async def query(self, database: DatabaseRef, sql: str) -> Sequence[Mapping[str, Any]]:
        """Run one read-only statement of the product's own (status figures) in a READ ONLY transaction, 10 s limit."""


# ---------------------------------------------------------------- object storage


class ObjectFacts(Frozen):
    """One stored object."""

    key: str
    bytes: int
    modified_at: datetime
    version: str | None = None
    metadata: Mapping[str, str] = {}  # of `head` alone
    etag: str = ""
    replication: str = (
        ""  # of `head` alone: COMPLETED, PENDING, FAILED, REPLICA, as S3 names it; empty: it does not tell
    )


class ObjectStore(Protocol):
    """S3, by bucket name of the site."""

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        """Raises UserError when `only_if_absent` and the key exists."""

    async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Multipart upload; returns bytes stored. On any error or cancellation the upload is aborted."""

    async def get(self, bucket: str, key: str) -> bytes:
        """Small objects. Raises UserError when there is no such key."""

    async def get_first(self, bucket: str, key: str, count: int) -> bytes:
        """The first bytes of an object, `count` of them or all there are. Raises as `get` does."""

    def get_stream(self, bucket: str, key: str) -> AsyncIterator[bytes]: ...

    async def head(self, bucket: str, key: str) -> ObjectFacts | None: ...

    async def list(self, bucket: str, prefix: str) -> Sequence[ObjectFacts]: ...

    async def delete(self, bucket: str, key: str) -> None: ...

    async def hold(self, bucket: str, key: str, *, on: bool) -> bool:
        """Put a legal hold on the present version of an object, or take it off; False where the bucket has no Object
        Lock, so that nothing can be held. Safe to repeat. Raises UserError when there is no such key."""

    async def held(self, bucket: str, key: str) -> bool | None:
        """Whether the present version is under legal hold; None where the bucket has no Object Lock. Raises UserError
        when there is no such key."""

    async def sweep_uploads(self, bucket: str, prefix: str, *, older_than: timedelta) -> int:
        """Abort multipart uploads that were left behind; returns how many."""


# ---------------------------------------------------------------- backups


class CatalogueEntry(Frozen):
    """One backup of the catalogue: its signed manifest checked, and the newest verification there is."""

    manifest: Manifest
    manifest_sha256: str  # of the stored manifest object: what a plan pins
    verified_at: datetime | None = None
    problem: str | None = None  # why it must not be used (bad signature, object missing or of another size)
    lost: bool = False  # its problem is that the object is missing or of another size; a local copy may be whole
    pinned: str = ""  # why nothing may delete it (pin or legal hold); empty when it is not pinned


class DumpRequest(Frozen):
    """One dump to be made. `id` is chosen by the plan, so a rerun finds it."""

    id: str
    database: str
    requested_by: str = ""
    copy_only: bool = False  # into the local copy alone, while the bucket does not answer or refuses


class LoadRequest(Frozen):
    """Load a catalogued dump into a new database, by name on a server."""

    backup: str
    database: str  # of the site: whose backup policy applies
    into: DatabaseRef
    mark: str
    jobs: int


class AdoptRequest(Frozen):
    """A dump made by other means, to be restored in scratch, measured and catalogued."""

    id: str
    database: str
    source_key: str  # object key in the database's bucket
    scratch: DatabaseRef
    mark: str  # of the scratch database
    requested_by: str = ""


class CopyRequest(Frozen):
    """Copy a database as it is into a new one on another server; nothing is stored on the way."""

    source: DatabaseRef
    database: str  # of the site: whose owner it gets where the present one is a superuser
    into: DatabaseRef
    mark: str
    jobs: int


class BackupEngine(Protocol):
    """Makes, reads and checks backups of one kind. Heavy calls are made inside `drbot job`, through the Executor."""

    async def catalogue(self, database: str) -> Sequence[CatalogueEntry]:
        """Newest first. A manifest that fails its check is listed with `problem`, never hidden."""

    async def find(self, database: str, backup: str) -> CatalogueEntry | None: ...

    async def copies(self, database: str) -> Sequence[CatalogueEntry]:
        """The whole, signed dumps of the local copy, newest first, as the catalogue shows them. Asks no bucket."""

    async def dump(self, request: DumpRequest, progress: Progress) -> SignedManifest:
        """A rerun returns what is there; one that finds a whole local copy brings that into the bucket."""

    async def upload(self, database: str, backup: str, progress: Progress) -> SignedManifest:
        """Bring a dump of the local copy into the bucket, its bytes checked on the way. Raises VerificationError when
        they are not those of its manifest, UserError when there is no such copy."""

    async def load(self, request: LoadRequest, progress: Progress) -> None:
        """Signature, then stored bytes (SHA-256), then the plain bytes, then `pg_restore` as an unprivileged role into
        `into`, then ANALYZE. Raises VerificationError otherwise and leaves no usable database. What came out of it is
        for others to measure: a loader does not attest its own work."""

    async def verify(self, database: str, backup: str, progress: Progress) -> CatalogueEntry:
        """Read the whole stored object, check both hashes and that the archive lists; record the result beside it."""

    async def adopt(self, request: AdoptRequest, progress: Progress) -> SignedManifest: ...

    async def versions(self, database: str) -> Mapping[str, str]:
        """Program that dumps or restores it -> version, here and now."""

    async def remove(self, database: str, backup: str) -> None:
        """Delete it from the bucket and from the local copy; its manifests first, so that no half of it is ever listed.
        One that is gone already is left alone."""

    async def pin(self, database: str, backup: str, *, reason: str) -> None:
        """Nothing may delete it: we do not, and where the bucket has Object Lock the store lets nobody (a legal hold).
        An empty reason takes both off. UserError when the bucket has no such backup."""

    async def holds(self, database: str, backup: str) -> Sequence[Hold]:
        """How its bucket itself keeps it, and would once it is pinned. UserError when there is no such backup."""

    async def copy(self, request: CopyRequest, progress: Progress) -> None:
        """Dump at one snapshot and load, as `load` does: as an unprivileged role, no usable database after a
        failure."""


class PhysicalBackups(Protocol):
    """Base backups and WAL by the engine that the plan file names for a server. Heavy calls are made inside
    `drbot job`, through the Executor."""

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        """Newest first. A manifest that fails its check is listed with `problem`, never hidden."""

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        """What can be reached, by bucket; the one that would survive the loss of the region first."""

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        """Make a base backup or an incremental. A rerun returns what is there."""

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        """Read the stored object completely, in each bucket that has it, check both hashes and every file; record the
        result beside it."""

    async def copy(self, server: str, backup: str, progress: Progress) -> Sequence[str]:  # noqa: ARG002 - as below
        """Bring this base backup, what it rests on, and what else was left over into the bucket that lacks it, each
        held against its signed manifest on its way; which were brought. Safe to repeat. Raises TemporaryError while a
        bucket does not answer; what is there stays as it is, whatever is raised."""
        return ()

    async def uncopied(self, server: str) -> Uncopied:  # noqa: ARG002 - an engine that copies nothing says so here
        """What is not in every bucket that the plan file names for base backups, by what the policy keeps. Changes
        nothing."""
        return Uncopied()

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        """Every member's signature and hashes, then combine, page checksums, replay to the target and proof that it
        was reached; the instance is left stopped, for `Scratch.start`. Raises VerificationError and leaves nothing."""

    async def feed(self, server: str, scratch: str) -> None:
        """Bring the scratch instance that follows the WAL that the archive has gained, each segment checked. What could
        not be brought is told by its `Following.problem`. Raises UserError unless it follows."""

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        """The transactions that harmed a table, newest first. Changes nothing."""

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        """The restore points of this name, newest first. Changes nothing."""

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        """Where a replay to this target stops, with what was committed around it; of a name as many as there are,
        newest first. Nothing where the archived WAL does not hold it. Changes nothing."""

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        """Nothing may delete it and what it needs: we do not, and where a bucket has Object Lock the store lets nobody
        (a legal hold), where the engine can set one. An empty reason takes both off, but for what another pin needs.
        A bucket that does not answer gets it with the next copy."""

    async def holds(self, server: str, backup: str) -> Sequence[Hold]:  # noqa: ARG002 - an engine that sets none says so here
        """How the buckets themselves keep it and what it needs. Changes nothing."""
        return ()

    async def expiry(self, server: str) -> Expiry:
        """What retention would delete now. Changes nothing."""

    async def expire(self, server: str, expiry: Expiry) -> None:
        """Delete exactly this, and nothing that has become needed meanwhile."""

    async def remove(self, server: str, backup: str) -> None:
        """Delete one base backup by name; its WAL goes with the next expiry. One that is gone is left alone. UserError
        while it is pinned, others rest on it, or it is one of the full backups that the policy never goes under."""

    async def versions(self, server: str) -> Mapping[str, str]:  # noqa: ARG002 - as above
        """Program that restores them -> version, here and now. Nothing where the engine cannot tell."""
        return {}

    async def lacks(self, server: str) -> Sequence[Lack]:  # noqa: ARG002 - an engine that needs nothing says so here
        """What keeps the engine from working on this server as the plan file wants it. Changes nothing."""
        return ()


class DumpTests(Protocol):
    """Dumps loaded for a restore test, inside `drbot job`, with the keys of restore tests."""

    async def load(self, request: DumpTest, progress: Progress) -> DumpLoaded:
        """Signature and both hashes, then everything into an empty server of its own, which is left stopped, for
        `Scratch.start`; never a server of the plan file. A rerun returns what is there. Raises VerificationError, and
        leaves nothing, when the dump cannot be loaded whole; UserError when the budget has no room for it."""


Wanted = Callable[[str], Awaitable[bool]]
"""Whether somebody needs the scratch instance of this id."""


class Scratch(Protocol):
    """Scratch instances on this machine. Every other port reaches one under its server name `scratch-<id>`."""

    async def instances(self) -> Sequence[ScratchFacts]: ...

    async def find(self, scratch: str) -> ScratchFacts | None: ...

    async def start(self, scratch: str) -> ScratchFacts:
        """Start it where it was stopped: paused at its target, read only; one that holds a dump as it was loaded. One
        that runs is left alone."""

    async def follow(self, scratch: str, *, delay: timedelta) -> ScratchFacts:
        """Make it a standby of the archive that stays so far behind, and start it: read only, without archiving. Raises
        UserError for one that was promoted or opened."""

    async def tend(self, scratch: str) -> ScratchFacts:
        """Let one that follows have what was brought to it, start it if it does not run, and remove what it needs no
        more. One that does not follow is left alone."""

    async def halt(self, scratch: str, target: RecoveryTarget, progress: Progress = no_progress) -> ScratchFacts:
        """End following at the target, a time, an LSN or `latest`, and prove that it rests there; it is left stopped,
        for `start`. Damage that is found there is kept with it (`ScratchRestored.damage`). Raises UserError when it has
        replayed beyond it, or what was brought ends before: then it follows on; TemporaryError when it is to be tried
        again: until then it does not run, so that it replays nothing beyond the target."""

    async def judge(self, scratch: str, database: str, check: Check) -> None:
        """Note what a check of one database of the plan file has found, in place of the one before
        (`ScratchFacts.checks`). Forgotten by `halt`, which brings it to another moment."""

    async def serving(self, scratch: str) -> Serving:
        """How it would run with production's configuration on this machine. Changes nothing."""

    async def open(self, scratch: str, *, host: str, port: int) -> ScratchFacts:
        """Start it again with that configuration, still paused and read only, so that applications can log in at this
        address, from now on at every start. Raises UserError, and leaves it as it was, when it does not start so."""

    async def shut(self, scratch: str) -> None:
        """Undo `open`: nobody but the bot gets in. One that was promoted is left alone."""

    async def promote(self, scratch: str, *, above: int = 0) -> ScratchFacts:
        """End its recovery: it becomes a server of its own on a new timeline id, higher than `above`, without
        archiving. One whose promotion was broken off is brought to its end."""

    async def stop(self, scratch: str) -> None: ...

    async def discard(self, scratch: str, *, mark: str) -> None:
        """Stop it and remove its files. Raises UserError unless it carries exactly this mark, or was promoted."""

    async def removed(self, scratch: str) -> bool:
        """Whether it was here and is gone: what was never here may stand on another machine."""

    async def lacking(self, wanted: int) -> str:
        """What this machine lacks for one more that takes so many bytes, disk or a port of the plan file's range, with
        the way out; empty where it lacks nothing. How many there may be is another matter (`ScratchBudget`)."""

    async def sweep(self, wanted: Wanted) -> Sequence[ScratchFacts]:
        """Remove those whose time is over, and what restores left that did not end, unless somebody is logged in or
        `wanted` says, asked right before, that a run or a plan needs it. Returns what was removed; a promoted one never
        is, nor one that runs on another machine."""


class Tables(Protocol):
    """Single tables of the databases of all servers: looked at, compared, brought back. Names are taken literally."""

    async def facts(self, database: DatabaseRef, table: TableName) -> TableFacts | None: ...

    async def difference(
        self, source: DatabaseRef, table: TableName, target: DatabaseRef, other: TableName
    ) -> Difference:
        """Compare all rows in the columns that both have. Read only; UserError when one of them is not there."""

    async def rescue(self, request: RescueRequest, progress: Progress) -> Rescued:
        """Carry it out in one transaction, compared with the source before it ends; a rerun of what is there brings
        nothing but foreign keys that lack. Triggers of people do not fire. Raises VerificationError when what is there
        is not this request's work, or when what came is not what the source holds: then nothing was changed."""

    async def withdraw(self, request: RescueRequest) -> None:
        """Take back what this request brought, and nothing else: told by its mark. Rows that were changed since are
        kept; a table that somebody has written to since is not dropped: UserError. Safe to repeat."""


# ---------------------------------------------------------------- heavy work


class JobKind(StrEnum):
    DUMP = "dump"
    LOAD = "load"
    VERIFY = "verify"
    UPLOAD = "upload"
    ADOPT = "adopt"
    BASE = "base"  # BaseRequest
    BASE_VERIFY = "base_verify"  # {"server", "backup"}
    BASE_COPY = "base_copy"  # {"server", "backup"}
    SCRATCH = "scratch"  # ScratchRequest
    PROVE = "prove"  # ScratchRequest or DumpTest, opened with the identity of the prover
    FIND = "find"  # FindRequest or PointRequest
    COPY = "copy"  # CopyRequest
    RESCUE = "rescue"  # RescueRequest
    FILES_COPY = "files_copy"  # FilesCopyRequest
    FILES_BRING_BACK = "files_bring_back"  # BringBack
    FILES_EXPIRE = "files_expire"  # CopiesExpiry


BESIDE_JOBS = "drbot-beside-"
"""How the names of jobs begin that read a scratch instance: they run on its machine, whatever runs the others."""


class JobSpec(Frozen):
    """One heavy piece of work, without secrets. `name` is derived from plan and step, so a rerun finds it."""

    name: str  # RFC 1123 label
    kind: JobKind
    request: Mapping[str, Any]  # the JSON of DumpRequest, LoadRequest, ...
    timeout: timedelta = timedelta(hours=6)


class JobPhase(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"  # it was started and is gone without a result


class JobState(Frozen):
    """A job as the executor finds it. `error_kind` is the class name out of `actions.errors`."""

    phase: JobPhase
    result: Mapping[str, Any] | None = None
    error: str = ""
    error_kind: str = ""


class Executor(Protocol):
    """Runs `drbot job` somewhere and finds it again by its name after a crash of the bot."""

    async def start(self, spec: JobSpec) -> None:
        """Start it unless a job of that name exists (running or ended)."""

    async def find(self, name: str) -> JobState | None: ...

    async def wait(self, name: str, progress: Progress) -> JobState:
        """Follow it to its end. Cancelling the wait does not end the job."""

    async def cancel(self, name: str) -> None:
        """End it and everything it started; returns when nothing of it is left."""

    async def forget(self, name: str) -> None:
        """Remove the traces of an ended job, so that the name can be used again."""

    async def problems(self) -> Sequence[str]:
        """What would keep a job from running, one sentence each; nothing is changed by looking."""


# ---------------------------------------------------------------- Kubernetes


class Autoscaler(Frozen):
    """A HorizontalPodAutoscaler that points at a workload."""

    name: str
    minimum: int
    maximum: int


class GitOps(Frozen):
    """The controller that would undo a change of this workload."""

    tool: str  # "argocd" or "flux"
    kind: str  # "Application", "Kustomization", "HelmRelease"
    namespace: str
    name: str
    suspended: bool
    revision: str = ""  # the commit (of a chart: the version) that it has applied last; empty where it does not tell
    status: str = ""  # how it says itself that it stands: "OutOfSync, Degraded", "Ready", or the reason why not
    mark: str = ""  # the plan of this product that suspended it; empty while it reconciles, and where others did
    automated: str = ""  # of Argo CD: `prune`, `selfHeal` and so on as JSON, as they are or will be given back


class WorkloadFacts(Frozen):
    """A workload as the API server shows it. For a CronJob `replicas` is 0 when suspended, else 1."""

    ref: WorkloadRef
    uid: str
    replicas: int
    ready: int
    recorded: int | None = None  # replicas to give back, recorded on the object when it was stopped
    mark: str = ""  # plan that stopped it
    restarted: str = ""  # mark of the last restart this product asked for
    containers: Mapping[str, str] = {}  # container -> the image that it asks for; init containers are not among them
    init_images: tuple[str, ...] = ()  # what its init containers ask for
    autoscaler: Autoscaler | None = None
    gitops: GitOps | None = None
    lasting: tuple[str, ...] = ()  # paths in its containers whose content outlives a scaling to zero

    @property
    def images(self) -> tuple[str, ...]:
        """What its containers ask for, in their order."""
        return tuple(self.containers.values())


class FailingPod(Frozen):
    """A pod that keeps a rollout from ending, and why."""

    name: str
    reason: str
    message: str = ""


class Rollout(Frozen):
    """State of a rollout: `done` only when observed generation, updated and available replicas all agree."""

    done: bool
    failed: bool  # the controller gave up (ProgressDeadlineExceeded)
    ready: int
    wanted: int
    failing: tuple[FailingPod, ...] = ()


class PodFacts(Frozen):
    """A pod, for people."""

    name: str
    phase: str  # "Running", "Pending", ...; "Terminating" once it is being ended
    ready: bool
    restarts: int = 0
    images: tuple[str, ...] = ()  # what its containers really run, by digest where the runtime tells
    init_images: tuple[str, ...] = ()  # what its init containers ran, likewise: without them it does not start
    reason: str = ""  # why a container waits or ended, when one does


class NamespaceFacts(Frozen):
    """What runs in a namespace. The workloads carry their autoscaler, but `gitops` is left None: see `workload`."""

    workloads: tuple[WorkloadFacts, ...] = ()
    pods: tuple[PodFacts, ...] = ()


class PodLog(Frozen):
    """The last lines a container wrote, oldest first."""

    pod: str
    container: str
    lines: tuple[str, ...]


class Cluster(Protocol):
    """The clusters of the site. Every change is compare-and-set on what was read."""

    async def overview(self, cluster: str, namespace: str) -> NamespaceFacts: ...

    async def logs(self, ref: WorkloadRef, *, lines: int = 50) -> Sequence[PodLog]:
        """The last lines of every container of at most ten of its pods; a container without a log is left out."""

    async def workload(self, ref: WorkloadRef) -> WorkloadFacts | None: ...

    async def stop(self, ref: WorkloadRef, *, mark: str) -> None:
        """Record the replica count on the object and scale to zero (CronJob: suspend) in one patch. A workload already
        stopped under this mark is left alone; one stopped under another mark keeps the first record, unless somebody
        has scaled it up since: then the count it has now is the one to give back."""

    async def give_back(self, ref: WorkloadRef, *, mark: str) -> None:
        """Scale to the recorded count and remove the record. Nothing recorded: nothing to do."""

    async def scale(self, ref: WorkloadRef, replicas: int) -> None: ...

    async def restart(self, ref: WorkloadRef, *, mark: str) -> None:
        """Ask for a rollout restart once per mark."""

    async def set_images(self, ref: WorkloadRef, *, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Compare-and-set of the images of these containers. Those that are as in `after` already are left alone; any
        that is neither: PreconditionError, and nothing is changed."""

    async def rollout(self, ref: WorkloadRef) -> Rollout:
        """A stopped workload is done once none of its pods is left, terminating ones included: those still write."""

    async def suspend_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        """Suspend the controller that owns the workload and record that it was this product."""

    async def resume_gitops(self, ref: WorkloadRef, *, mark: str) -> None:
        """Undo `suspend_gitops` where it was done under this mark; a suspension by others is kept."""

    async def config(self, cluster: str, namespace: str, name: str) -> Mapping[str, str]: ...

    async def set_config(self, cluster: str, namespace: str, name: str, *, key: str, before: str, after: str) -> None:
        """Compare-and-set of one key of a ConfigMap. Raises PreconditionError when it is not `before`."""


# ---------------------------------------------------------------- small ones


class ServiceCheck(Protocol):
    """The application's own view: its HTTP check and its own database connection."""

    async def http(self, url: str) -> str | None:
        """None when it answers 2xx within 5 s, else one sentence saying what it answered."""

    async def connection(self, dsn: SecretRef, *, at: str = "") -> DatabaseRefSeen | str:
        """Connect as the application does, or with all it uses but the address, which is then `at` (`host:port`, or a
        host alone beside its own port); which database answered, or one sentence saying why not."""

    async def login(self, dsn: SecretRef) -> str:
        """The role that the application connects as; empty where its connection cannot be read or names none."""


class DatabaseRefSeen(Frozen):
    """What the application's own connection reached."""

    name: str
    oid: int
    system_id: str
    in_recovery: bool


class Secrets(Protocol):
    """Resolves references. The value never leaves the adapter that needs it."""

    async def resolve(self, ref: SecretRef) -> str: ...


class Pager(Protocol):
    """Reaches people outside Slack."""

    async def page(self, text: str, *, key: str) -> None:
        """Hand over one message within seconds; the receiver may drop a `key` it knows already. Raises TemporaryError
        when trying again may help, PermanentError when not."""


# ---------------------------------------------------------------- runs


class Answer(StrEnum):
    """What people say to a run that asks. LEFT ends it as it stands; the others are lines of its journal."""

    HAPPENED = "happened"
    REPEAT = "repeat"
    SKIPPED = "skipped"
    ABORTED = "aborted"
    LEFT = "left"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as it is now. `plan` is its `actions.contract.Plan`, which stands above this module."""

    id: str
    state: str
    plan: Any
    message: str = ""  # what it asks, or how it ended
    question: int | None = None  # number of the journal line that asks; None while nothing is asked
    answered: Mapping[int, Answer] = field(default_factory=dict)  # by question
    step: int | None = None  # the one that is asked about, from 0
    backward: bool = False  # it only puts back from here
    last: Mapping[int, str] = field(default_factory=dict)  # of every step that was begun: its newest state
    lines: int = 0  # of its journal


class MeasuredLoad(Frozen):
    """How long a dump took to be loaded by a run, in one go."""

    database_bytes: int
    took: timedelta
    at: datetime  # when it was done


class Runs(Protocol):
    """The bot's own runs, for the actions that decide about them."""

    async def find(self, run: str) -> RunFacts | None:
        """Raises UserError when this version of the bot cannot read the plan of the run."""

    async def last_load(self, database: str) -> MeasuredLoad | None:
        """The newest load of a dump of this database by a restore. One that was interrupted measures nothing."""

    async def full_since(self, server: str) -> datetime | None:
        """Since when a run has been making a full base backup of this server; None while none is at work on one."""

    async def next_of(self, action: str, target: str) -> datetime | None:
        """When the bot does this by itself next, as a drill of the plan file; in the past where it is due already. None
        where no drill does it."""

    async def rhythm_of(self, action: str, target: str) -> timedelta | None:
        """The longest time between two of those by the drill's schedule, within a year or two. None where no drill does
        it."""

    async def exposures_since(self, since: datetime) -> Sequence[str]:
        """A sentence for all that is recorded since then of a breach or a rotation of credentials: incidents, what
        people noted on their timelines, and runs."""

    async def answer(self, run: str, question: int, answer: Answer, *, plan: str) -> None:
        """Answer this very question, in the name of the people who signed `plan`; the run then goes on, goes back or
        ends. The same answer again changes nothing. Raises PermanentError when the run does not ask this any more."""


# ---------------------------------------------------------------- the plan file


class PlanFileChange(Frozen):
    """A new plan file beside the one in force. Hashes are SHA-256, hex."""

    sha256: str
    name: str  # what the plan calls itself
    before: str  # hash of the version in force
    changes: tuple[str, ...]  # `roster.ona.roles: ...`, contact details left out
    warnings: tuple[str, ...] = ()


class PlanVersions(Protocol):
    """The versions of the plan file under which the bot works."""

    async def active(self) -> str:
        """The hash of the version in force."""

    async def compare(self, document: str) -> PlanFileChange:
        """Raises UserError with every error of the document, and when it changes nothing."""

    async def activate(self, document: str, *, plan: str) -> None:
        """Make it the version in force, in the name of the people who signed `plan`. The version in force is left
        alone when it is this one."""


class Clock(Protocol):
    """Aware UTC time, and waiting."""

    def now(self) -> datetime: ...

    async def sleep(self, duration: timedelta) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything an action may touch."""

    site: Site
    postgres: PostgresAdmin
    objects: ObjectStore
    buckets: Buckets
    files: Files
    backups: BackupEngine
    physical: PhysicalBackups
    scratch: Scratch
    tables: Tables
    executor: Executor
    cluster: Cluster
    escrow: Escrow
    secret_copies: SecretCopies
    manifests: Manifests
    branches: Branches
    registry: Registry
    points: Points
    service: ServiceCheck
    secrets: Secrets
    clock: Clock
    runs: Runs
    plan_versions: PlanVersions
