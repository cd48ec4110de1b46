"""What physical backups are, whichever engine makes them: base backups, WAL, the window they open, a point in it.

They belong to a server, not to a database: WAL is shared by all databases of a server.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from actions.backup.dump_test import DumpLoaded
from actions.backup.manifest import StoredObject
from actions.site import Frozen

SEGMENT = 16 * 1024 * 1024
"""Bytes of a WAL segment of a server that was initialised without `--wal-segsize`."""


class Lsn(int):
    """A place in the WAL, in bytes since its beginning; printed as PostgreSQL prints it."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Raises ValueError unless it looks like `16/B374D848`."""
        if not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", text):
            raise ValueError(f"`{text}` is no LSN such as 16/B374D848")
        high, _, low = text.partition("/")
        return cls((int(high, 16) << 32) + int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"


class BackupKind(StrEnum):
    """FULL holds all pages; INCREMENTAL those that changed since its parent."""

    FULL = "full"
    INCREMENTAL = "incremental"


class PhysicalManifest(Frozen):
    """The signed description of a base backup. LSNs as PostgreSQL prints them."""

    format: int = 1
    id: str  # also its folder in the bucket
    server: str
    kind: BackupKind
    parent: str | None = None  # id of the backup an incremental rests on
    full_because: str = Field(default="", exclude_if=operator.not_)  # why it is full where an incremental was asked for
    system_id: str
    server_version: int  # server_version_num
    timeline_id: int
    start_lsn: str  # WAL from here on is needed
    stop_lsn: str  # from here on it is consistent
    started_at: AwareDatetime
    finished_at: AwareDatetime  # UTC; the oldest moment it can be restored to
    stored: StoredObject
    plain_bytes: int
    plain_sha256: str
    compression: str = "zstd"
    recipients: tuple[str, ...] = ()
    files: StoredObject | None = None  # the server's own list of all files, which incrementals rest on
    server_bytes: int = 0  # size of the data directory's databases
    checksums: bool | None = True  # data checksums are on; None where nobody knows
    segment_bytes: int = SEGMENT
    databases: tuple[str, ...] = ()
    database_oids: Mapping[str, int] = {}  # as WAL names them
    superuser: str = "postgres"  # the role that `initdb` made
    snapshot: str = ""  # pg_current_snapshot() just after its end: what is not done in it commits later
    relfilenodes: Mapping[str, Mapping[str, int]] = {}  # database -> "schema.table" -> relfilenode
    tools: Mapping[str, str] = {}
    requested_by: str = ""


class PhysicalEntry(Frozen):
    """One base backup of the catalogue: its manifest checked, its last verification and its last proof."""

    manifest: PhysicalManifest
    manifest_sha256: str
    verified_at: datetime | None = None
    proven_at: datetime | None = None  # restored, started and checked
    pinned: str = ""  # why nothing may delete it (pin or legal hold); empty when it is not pinned
    problem: str | None = None  # why it must not be used
    trusted: bool = True  # its manifest is signed by a trusted key, whatever else is wrong with it
    whole_in: tuple[str, ...] = ()  # buckets that have all of it; empty where an engine keeps that to itself
    behind: tuple[str, ...] = ()  # buckets that answered and lack something of it, which another one may give
    spoiled: Mapping[str, str] = {}  # bucket -> why what it has of it must not be used; it never gets better by itself

    @property
    def bucket(self) -> str:
        """Where people find it."""
        return self.whole_in[0] if self.whole_in else self.manifest.stored.bucket


class Uncopied(Frozen):
    """What of the base backups is not in every bucket that the plan file names for them."""

    backups: Mapping[str, tuple[str, ...]] = {}  # backup -> buckets that lack it, or its pin; parents first
    spoiled: Mapping[str, Mapping[str, str]] = {}  # backup -> bucket -> why its copy there must not be used
    silent: Mapping[str, str] = {}  # bucket that cannot be looked at -> why

    @property
    def complete(self) -> bool:
        """Whether everything that can be copied was."""
        return not self.backups and not self.silent


class Gap(Frozen):
    """A stretch for which WAL is missing: nothing between can be reached, nor anything after it from a base before."""

    timeline_id: int
    first: str  # first segment that is missing
    last: str
    after: datetime | None = None  # moments between these two cannot be reached, as far as known
    before: datetime | None = None
    # One of the two is when a segment was stored, since what it says itself could not be read: in a bucket that was
    # filled later that is later than its commits.
    loose: bool = False
    seen_at: datetime | None = None  # when the segment after it was stored


class DeadEnd(Frozen):
    """Where the way of a base backup ends because the server went on, along another timeline, from before its end."""

    timeline_id: int  # of the backup
    lsn: str  # the archived WAL of that timeline ends here, as far as closed segments tell
    forked_at: str  # LSN from which on the server went its other way
    living: int  # timeline id that the server went on with


class RecoveryWindow(Frozen):
    """What can be reached from one bucket alone."""

    server: str
    bucket: str
    oldest: datetime | None = None
    newest: datetime | None = None  # the newest commit that would survive the loss of the server
    newest_lsn: str = ""
    timeline_id: int = 0
    gaps: tuple[Gap, ...] = ()
    fulls: int = 0
    incrementals: int = 0
    wal_bytes: int = 0
    dead_ends: Mapping[str, DeadEnd] = {}  # base backup -> why it leads to no moment of this window
    problem: str = ""  # why nobody can tell what can be reached, and what to do
    elsewhere: tuple[str, ...] = ()  # base backups that would not survive together with this bucket


class RecoveryTarget(Frozen):
    """Where replay stops. Exactly one of time, lsn, xid, name or `latest`."""

    time: AwareDatetime | None = None
    lsn: str | None = None
    xid: int | None = None
    name: str | None = None  # of pg_create_restore_point
    latest: bool = False
    inclusive: bool = True  # False: stop just before it ("before the DROP")
    timeline_id: int | None = None  # None: the newest that holds the target

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.time is not None, self.lsn is not None, self.xid is not None, self.name is not None, self.latest]
        if sum(given) != 1:
            raise ValueError("give exactly one of time, lsn, xid, name or latest")
        if self.lsn is not None:
            Lsn.parse(self.lsn)
        return self

    def __str__(self) -> str:
        edge = "" if self.inclusive else "just before "
        if self.time is not None:
            return f"{edge}{self.time:%Y-%m-%d %H:%M:%S.%f} UTC"
        if self.latest:
            return "the end of the archive"
        words = {"LSN": self.lsn, "transaction": self.xid, "restore point": self.name}
        return edge + next(f"{word} {value}" for word, value in words.items() if value is not None)


class Lack(Frozen):
    """What an engine lacks on a server: `stops` it, or lets more be lost than need be."""

    what: str
    next: str  # what to do
    stops: bool = True


class BaseRequest(Frozen):
    """One base backup to be made. `id` is chosen by the plan, so a rerun finds it."""

    id: str
    server: str
    kind: BackupKind
    parent: str | None = None
    requested_by: str = ""


class ScratchRequest(Frozen):
    """A server to be restored into a scratch instance and stopped at its target. `id` is chosen by the plan."""

    id: str
    server: str
    target: RecoveryTarget
    backup: str | None = None  # the base to start from; None: the newest before the target
    amcheck: bool = False  # check every index with pg_amcheck
    mark: str = ""
    keep: timedelta | None = None  # how long it may stay; None: as long as the plan file says


class Phase(StrEnum):
    """What a restore spends its time on."""

    FETCH = "fetch"
    COMBINE = "combine"
    REPLAY = "replay"
    CHECK = "check"


class ScratchRestored(Frozen):
    """What came out of a restore into a scratch instance, measured."""

    id: str
    backup: str
    target: RecoveryTarget
    reached_lsn: str
    reached_at: datetime | None  # the last commit that is in it; None when none was replayed
    timeline_id: int
    checked_pages: bool
    # Its pages bear no checksums, so they cannot be checked. Where neither is said, nobody looked at them.
    without_checksums: bool = Field(default=False, exclude_if=operator.not_)
    checked_indexes: tuple[str, ...] = ()  # databases whose indexes were compared with their tables
    damage: str = Field(default="", exclude_if=operator.not_)  # that was found where a standby was stopped; it is kept
    seconds: Mapping[str, float] = {}  # by Phase
    bytes: int = 0  # fetched, as stored
    plain_bytes: int = 0  # of the base backup and what it rests on, unpacked
    wal_bytes: int = 0  # replayed
    passed_over: tuple[str, ...] = Field(
        default=(), exclude_if=operator.not_
    )  # copies that were no good, each with why, and what lay in an archive without being of it
    tools: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # what restored it -> version
    # Of a restore to the end of the archive: everything committed until then is in it, by the archiver's own word.
    covered_until: AwareDatetime | None = Field(default=None, exclude_if=operator.not_)


class Change(StrEnum):
    """What the finder looks for."""

    DROP = "drop"
    TRUNCATE = "truncate"
    DELETE = "delete"
    UPDATE = "update"


class FindRequest(Frozen):
    """Look through the archived WAL for what harmed a table."""

    server: str
    database: str
    table: str  # "schema.table", or a bare name in `public`
    changes: tuple[Change, ...] = (Change.DROP, Change.TRUNCATE, Change.DELETE)
    since: datetime | None = None
    until: datetime | None = None
    database_oid: int | None = None  # where the server answers; else the newest base backup tells
    relfilenode: int | None = None  # the table's file now, where it is there
    table_oid: int | None = None  # likewise


class Moment(Frozen):
    """One transaction that the finder proposes to stop before."""

    change: Change
    xid: int
    commit_lsn: str
    committed_at: AwareDatetime
    timeline_id: int
    rows: int = 0  # deletes or updates of the table in it, where they can be counted
    before_xid: int | None = None  # the last transaction committed before it, and when
    before_at: datetime | None = None
    after_at: datetime | None = None  # the first commit after it
    lost: int = 0  # transactions committed after it: what a restore to this point loses
    lock_lsn: str | None = None  # where it locked the table against everybody, before it committed

    @property
    def target(self) -> RecoveryTarget:
        """Just before it. A server that is paused between lock and commit keeps the table locked as well, so that
        nobody could read it there; and once it was locked, nobody changed it."""
        if self.lock_lsn is not None:
            return RecoveryTarget(lsn=self.lock_lsn, inclusive=False, timeline_id=self.timeline_id)
        return RecoveryTarget(xid=self.xid, inclusive=False, timeline_id=self.timeline_id)


class PointRequest(Frozen):
    """Look through the archived WAL for the restore points of this name."""

    server: str
    point: str
    since: datetime | None = None  # WAL from before the last base backup that ends before it is not looked through


class NamedPoint(Frozen):
    """A `pg_create_restore_point`, which has no time of its own."""

    name: str
    lsn: str  # where its record begins
    timeline_id: int
    before_at: datetime | None = None  # the last commit before it that was seen
    after_at: datetime | None = None  # the first commit after it

    @property
    def target(self) -> RecoveryTarget:
        """Just after its record, where PostgreSQL itself would stop for the name."""
        return RecoveryTarget(lsn=self.lsn, timeline_id=self.timeline_id)


class PlaceRequest(Frozen):
    """Look through the archived WAL for where a replay to this target stops; all but `latest`."""

    server: str
    target: RecoveryTarget


class Place(Frozen):
    """Where a replay stops, and what was committed around it."""

    lsn: str  # of the record that it stops at
    timeline_id: int
    before_xid: int | None = None  # the last transaction that is in, and when it was committed
    before_at: datetime | None = None
    after_xid: int | None = None  # the first one that is not
    after_at: datetime | None = None
    lost: int = 0  # transactions committed after it, as far as they are archived


class ScratchState(StrEnum):
    """STOPPED: restored and shut down. PAUSED: running, read only, at its target. FOLLOWING: a standby that replays
    what the archive gains. PROMOTED: a server of its own. LOADED: no moment of a server, but a dump in an empty one."""

    STOPPED = "stopped"
    PAUSED = "paused"
    FOLLOWING = "following"
    PROMOTED = "promoted"
    LOADED = "loaded"
    BROKEN = "broken"  # left by a restore that did not end
    RESTORING = "restoring"  # a restore is at work in it


class Waiting(StrEnum):
    """What the replay of a standby waits for, when it has nothing to do."""

    WAL = "wal"  # it has replayed all that was brought to it
    DELAY = "delay"  # the next commit is younger than its delay


class Following(Frozen):
    """A scratch instance as a standby: what it was told, what was brought to it, how far it is."""

    delay: timedelta
    since: AwareDatetime
    halting: RecoveryTarget | None = None  # it is being stopped there
    fed_at: datetime | None = None  # when the archive was last read for it
    fed_lsn: str = ""  # its WAL ends here
    problem: str = ""  # why the last reading brought less than there is
    stranded: bool = False  # the archive has gone on along a timeline id that this one can never follow
    replayed_lsn: str = ""  # "" while it does not answer
    replayed_at: datetime | None = None  # the last commit that is in it
    waits: Waiting | None = None  # None: it replays, or does not answer

    def past(self, target: RecoveryTarget) -> bool:
        """Whether it has replayed beyond the target, which is a time, an LSN or `latest`. A replay never goes back."""
        if target.time is not None and self.replayed_at is not None:
            return self.replayed_at > target.time or (self.replayed_at == target.time and not target.inclusive)
        if target.lsn is not None and self.replayed_lsn:
            return Lsn.parse(self.replayed_lsn) > Lsn.parse(target.lsn)
        return False


class Check(Frozen):
    """What a look through one database of a scratch instance has found at its moment."""

    at: AwareDatetime
    table: str = ""  # that had to be there
    problem: str = ""  # why nothing is given back from it as a whole
    compared: str = ""  # with production as it was then, in words; empty where that was not read


class ScratchFacts(Frozen):
    """A scratch instance as it is now. As a server it is called `scratch-<id>`: every port takes that name."""

    id: str
    server: str  # of the plan file: whose data it holds
    mark: str
    state: ScratchState
    restored: ScratchRestored | None = None
    loaded: DumpLoaded | None = None  # where it holds a dump, for a restore test
    address: str = ""  # host:port or socket
    system_id: str = ""
    bytes: int = 0
    made_at: datetime
    expires_at: datetime
    opened: bool = False  # to applications, at `address`; production's configuration as far as it fits
    following: Following | None = None  # while it is a standby
    checks: Mapping[str, Check] = {}  # database of the plan file -> what was found at this moment

    @property
    def problem(self) -> str:
        """What its checks have found wrong at its moment; empty: nothing, or there was none."""
        return " ".join(check.problem for _, check in sorted(self.checks.items()) if check.problem)

    @property
    def name(self) -> str:
        """Its name as a server."""
        return f"{SCRATCH}{self.id}"


SCRATCH = "scratch-"
"""Before the id of a scratch instance: its name as a server. No server of a plan file may begin with it."""


class Serving(Frozen):
    """How a scratch instance would run as a server that people use: production's configuration on this machine."""

    settings: Mapping[str, str]
    left: Mapping[str, str] = {}  # a setting of production that is not taken over -> why
    access: bool = True  # production's pg_hba.conf is there; else passwords from the networks of this machine


class Expiry(Frozen):
    """What retention would delete, and what it keeps although it is old, with the reason."""

    server: str
    backups: tuple[str, ...] = ()
    segments: int = 0
    wal: tuple[tuple[str, str], ...] = ()  # the first and the last segment of every stretch
    bytes: int = 0
    kept: Mapping[str, str] = {}  # backup -> why


class Proof(Frozen):
    """A restore test, with what it measured; signed and kept beside the backups. Of base backups it is about a server,
    of a dump about a database."""

    id: str
    server: str
    # What is left out where it is not so came later: a proof that was signed before stays signed.
    database: str = Field(default="", exclude_if=operator.not_)  # of the plan file, whose dump was loaded
    target: RecoveryTarget | None = Field(default=None, exclude_if=operator.not_)  # None: a dump has one moment
    backup: str
    proven_at: AwareDatetime
    rto: timedelta  # from the request to the checked instance
    # Of base backups from the newest reachable moment to that of the test; of a dump its age when the next one comes.
    rpo: timedelta
    seconds: Mapping[str, float] = {}
    bytes: int = 0
    plain_bytes: int = Field(default=0, exclude_if=operator.not_)
    wal_bytes: int = Field(default=0, exclude_if=operator.not_)
    checks: Mapping[str, str] = Field(default_factory=dict)  # what was checked -> what came out
    problem: str | None = None
    tools: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)  # what restored it -> version
    # The server and its tools as whoever planned the test saw them: an upgrade since is told by these.
    known: Mapping[str, str] = Field(default_factory=dict, exclude_if=operator.not_)
