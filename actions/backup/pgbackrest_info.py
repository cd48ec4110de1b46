"""What `pgbackrest info --output=json` says, as the product's own words. Pure: JSON in, values out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actions.backup.manifest import StoredObject
from actions.backup.physical import SEGMENT, BackupKind, Lsn, PhysicalEntry, PhysicalManifest
from actions.backup.segments import Segment
from actions.errors import PermanentError, TemporaryError, UserError

# Keys of our annotations on a backup (pgBackRest 2.41 and newer).
ID, REQUESTED_BY, VERIFIED, PROVEN, PINNED, PROBLEM, STATE = (
    f"drbot-{name}" for name in ("id", "requested-by", "verified", "proven", "pinned", "problem", "state")
)
_NO_STANZA = (1, 3)  # stanza path, or the data in it, is missing
_NO_BACKUP = 2
_OTHER = 99  # a repository could not be read
_SIZES = [1 << power for power in range(20, 31)]  # 1 MiB to 1 GiB, what `initdb --wal-segsize` takes


class _Said(BaseModel):
    """Newer versions of pgBackRest say more: what is not known here is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Range(_Said):
    """From and to: segment names, LSNs or seconds since 1970."""

    start: str | None = None
    stop: str | None = None


class Seconds(_Said):
    start: int
    stop: int


class Repository(_Said):
    """The number of a repository and, in backups and archives, of the cluster whose they are."""

    id: int = 0
    key: int = Field(default=1, alias="repo-key")


class RepositorySize(_Said):
    size: int | None = None
    delta: int = 0


class Sizes(_Said):
    size: int
    repository: RepositorySize = RepositorySize()


class State(_Said):
    """What we saw of the server just after a backup of ours: as one annotation, in JSON."""

    superuser: str = "postgres"
    snapshot: str = ""
    checksums: bool | None = None  # not known of backups that we have not made
    version: int = 0  # server_version_num


class Backup(_Said):
    """One backup, with everything before it that it needs in `reference`."""

    label: str
    type: str  # full, diff, incr
    prior: str | None = None
    reference: tuple[str, ...] | None = None
    archive: Range = Range()
    lsn: Range | None = None
    timestamp: Seconds
    error: bool | None = None  # pages whose checksum was wrong while they were read
    info: Sizes
    database: Repository = Repository()
    annotation: Mapping[str, str] = {}

    @property
    def id(self) -> str:
        """Ours where we made it, else pgBackRest's own label."""
        return self.annotation.get(ID, self.label)

    @property
    def state(self) -> State:
        try:
            return State.model_validate_json(self.annotation.get(STATE, "{}"))
        except ValidationError:
            return State()

    @property
    def finished_at(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp.stop, UTC)


class Archive(_Said):
    """The WAL of one cluster in one repository: first and last segment that are there."""

    id: str  # such as 15-1: major version, number of the cluster
    min: str | None = None
    max: str | None = None
    database: Repository = Repository()


class Cluster(_Said):
    """A cluster that the stanza knows; the last one is the present one."""

    id: int
    system_id: int = Field(alias="system-id")
    version: str
    key: int = Field(default=1, alias="repo-key")


class RepositoryState(_Said):
    code: int
    message: str


class RepositoryFacts(_Said):
    key: int
    status: RepositoryState


class Stanza(_Said):
    """Everything pgBackRest knows of one server."""

    name: str
    status: RepositoryState
    db: tuple[Cluster, ...] = ()
    archive: tuple[Archive, ...] = ()
    backup: tuple[Backup, ...] = ()
    repo: tuple[RepositoryFacts, ...] = ()

    def cluster(self, repository: Repository) -> Cluster:
        """Raises PermanentError when the stanza does not know it."""
        for item in self.db:
            if (item.id, item.key) == (repository.id, repository.key):
                return item
        raise PermanentError(
            f"pgBackRest names a cluster {repository.id} of stanza `{self.name}` that it does not list."
        )

    def of(self, repository: Repository) -> Sequence[Backup]:
        """The backups of one cluster in one repository, oldest first."""
        return [item for item in self.backup if item.database == repository]

    def present(self, key: int) -> Archive | None:
        """The archive of the present cluster in a repository."""
        return max(
            (item for item in self.archive if item.database.key == key), key=lambda item: item.database.id, default=None
        )

    def archive_of(self, backup: Backup) -> Archive | None:
        """Where the WAL of a backup's cluster is."""
        wanted = (backup.database.id, backup.database.key)
        return next((item for item in self.archive if (item.database.id, item.database.key) == wanted), None)


def stanza_of(text: str, name: str) -> Stanza:
    """Read the answer. Raises UserError when there is no such stanza, TemporaryError when no repository can be read."""
    try:
        found = [Stanza.model_validate(item) for item in json.loads(text)]
    except (ValueError, ValidationError) as error:
        raise PermanentError("`pgbackrest info --output=json` answered something that is not its JSON.") from error
    stanza = next((item for item in found if item.name == name), None)
    if stanza is None or stanza.status.code in _NO_STANZA:
        raise UserError(
            f"pgBackRest has no stanza `{name}` in its repository. Create it with "
            f"`pgbackrest --stanza={name} stanza-create`, or correct `stanza` in the plan file."
        )
    if stanza.status.code == _OTHER and not any(item.status.code in (0, _NO_BACKUP) for item in stanza.repo):
        said = "; ".join(dict.fromkeys(" ".join(item.status.message.split()) for item in stanza.repo))
        raise TemporaryError(
            f"pgBackRest cannot read the repository of stanza `{name}`: {said[:600]}. Check that its store runs and "
            "can be reached."
        )
    return stanza


def entry_of(
    backup: Backup, stanza: Stanza, *, server: str, bucket: str, requested: Mapping[str, str], segment_bytes: int
) -> PhysicalEntry:
    """A backup as the catalogue shows it. `requested` gives the ids of other backups by their label."""
    cluster, state = stanza.cluster(backup.database), backup.state
    manifest = PhysicalManifest(
        id=backup.id,
        server=server,
        kind=BackupKind.FULL if backup.type == "full" else BackupKind.INCREMENTAL,
        parent=requested.get(backup.prior, backup.prior) if backup.prior else None,
        system_id=str(cluster.system_id),
        server_version=state.version or version_number(cluster.version),
        timeline_id=int(backup.archive.start[:8], 16) if backup.archive.start else 0,
        start_lsn=(backup.lsn.start or "") if backup.lsn else "",
        stop_lsn=(backup.lsn.stop or "") if backup.lsn else "",
        started_at=datetime.fromtimestamp(backup.timestamp.start, UTC),
        finished_at=backup.finished_at,
        stored=StoredObject(
            bucket=bucket,
            key=f"backup/{stanza.name}/{backup.label}/",
            bytes=backup.info.repository.delta,
            sha256="",  # many files; pgBackRest keeps the SHA-1 of each
        ),
        plain_bytes=backup.info.size,
        plain_sha256="",
        compression="pgbackrest",
        server_bytes=backup.info.size,
        checksums=state.checksums,
        segment_bytes=segment_bytes,
        superuser=state.superuser,
        snapshot=state.snapshot,
        requested_by=backup.annotation.get(REQUESTED_BY, ""),
    )
    said = backup.model_dump(mode="json", exclude={"annotation"})
    return PhysicalEntry(
        manifest=manifest,
        manifest_sha256=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
        verified_at=_moment(backup.annotation.get(VERIFIED)),
        proven_at=_moment(backup.annotation.get(PROVEN)),
        pinned=backup.annotation.get(PINNED, ""),
        problem=problem_of(backup, stanza),
    )


def problem_of(backup: Backup, stanza: Stanza) -> str | None:
    """Why it must not be used, as far as the listing tells; None when nothing is known against it."""
    if backup.error:
        return f"`{backup.label}` holds pages with a wrong checksum: the server was damaged already. Take an older one."
    if PROBLEM in backup.annotation:
        return backup.annotation[PROBLEM]
    if backup.lsn is None or not (backup.lsn.start and backup.lsn.stop and backup.archive.start):
        return f"`{backup.label}` was made while the server was down, without WAL: it shows no moment to go on from."
    labels = {item.label for item in stanza.backup if item.database.key == backup.database.key}
    for needed in (*(backup.reference or ()), *((backup.prior,) if backup.prior else ())):
        if needed not in labels:
            return f"`{backup.label}` rests on `{needed}`, which is not in the repository any more."
    return _without_wal(backup, stanza.archive_of(backup))


def _without_wal(backup: Backup, archive: Archive | None) -> str | None:
    start, stop = backup.archive.start, backup.archive.stop
    if start is None or stop is None:
        return None
    if archive is None or archive.min is None or archive.max is None:
        return f"`{backup.label}` needs WAL from `{start}` to `{stop}`, and the archive holds none."
    # Segments of a later timeline sort behind; the numbers alone count, and sort by their digits whatever their size.
    if start[8:] < archive.min[8:] and start[:8] == archive.min[:8]:
        return f"`{backup.label}` needs WAL from `{start}`, and the archive begins with `{archive.min}`."
    if stop[8:] > archive.max[8:] and stop[:8] == archive.max[:8]:
        return f"`{backup.label}` needs WAL up to `{stop}`, and the archive ends with `{archive.max}`."
    return None


def entries_of(stanza: Stanza, *, server: str, buckets: Mapping[int, str]) -> Sequence[PhysicalEntry]:
    """The catalogue, newest first. `buckets` names the repositories by their number."""
    requested = {backup.label: backup.id for backup in stanza.backup}
    size = segment_bytes(stanza)
    entries = [
        entry_of(
            backup,
            stanza,
            server=server,
            bucket=buckets.get(backup.database.key, f"repo{backup.database.key}"),
            requested=requested,
            segment_bytes=size,
        )
        for backup in stanza.backup
    ]
    return sorted(entries, key=lambda entry: (entry.manifest.finished_at, entry.manifest.id), reverse=True)


def segment_bytes(stanza: Stanza) -> int:
    """The size of the server's segments, which pgBackRest does not tell: the one that puts the first LSN of every
    backup into the segment that is named beside it."""
    fitting = [SEGMENT, *(size for size in _SIZES if size != SEGMENT)]
    for backup in stanza.backup:
        name, lsn = backup.archive.start, backup.lsn.start if backup.lsn else None
        if name is not None and lsn is not None:
            timeline_id = int(name[:8], 16)
            fits = [size for size in fitting if str(Segment.holding(Lsn.parse(lsn), timeline_id, size)) == name]
            fitting = fits or fitting
    return fitting[0]


def version_number(text: str) -> int:
    """`server_version_num` of a major version as pgBackRest writes it: 15 is 150000, 9.6 is 90600."""
    major, _, minor = text.partition(".")
    return int(major) * 10000 + (int(minor) * 100 if minor else 0)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
