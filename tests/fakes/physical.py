"""Physical backups and scratch instances in memory: a history of commits, and servers made of a moment of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from actions.backup.chain import parent_of_next
from actions.backup.manifest import Fingerprint, StoredObject
from actions.backup.physical import (
    BackupKind,
    BaseRequest,
    Check,
    DeadEnd,
    Expiry,
    FindRequest,
    Following,
    Gap,
    Lack,
    Lsn,
    Moment,
    NamedPoint,
    PhysicalEntry,
    PhysicalManifest,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
    RecoveryWindow,
    ScratchFacts,
    ScratchRequest,
    ScratchRestored,
    ScratchState,
    Serving,
    Uncopied,
    Waiting,
)
from actions.backup.retention import why_it_stays
from actions.buckets import Hold
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import Clock, PhysicalBackups, Progress, ProgressReport, Scratch, Wanted, no_progress
from actions.site import DatabaseRef, Site
from tests.fakes.postgres import MemoryPostgres, MemoryServer

NOT_FOLLOWING = "Scratch instance `{}` does not follow."
DISK = 1 << 50  # bytes that are free
SWEPT = (ScratchState.STOPPED, ScratchState.PAUSED, ScratchState.LOADED)
STAYS = (ScratchState.PROMOTED, ScratchState.FOLLOWING, ScratchState.LOADED)
"""Whether it runs or not."""


@dataclass(frozen=True)
class Commit:
    """One transaction of a server's past, and what its databases were after it."""

    at: datetime
    lsn: str
    xid: int
    databases: Mapping[str, Fingerprint]


@dataclass
class MemoryHistory:
    """The past of one server."""

    commits: list[Commit] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)  # what `find` proposes
    points: list[NamedPoint] = field(default_factory=list)  # newest first
    timeline_id: int = 1
    dead_ends: dict[str, DeadEnd] = field(default_factory=dict)  # base backup -> the branch it is on


class MemoryScratch(Scratch):
    """Instances that a restore has made; as servers of the fake PostgreSQL they are there while they run."""

    def __init__(self, postgres: MemoryPostgres, clock: Clock) -> None:
        self._postgres, self._clock = postgres, clock
        self.made: dict[str, ScratchFacts] = {}
        self.gone: set[str] = set()
        self.lacks = ""  # what the machine lacks for one more
        self.contents: dict[str, Mapping[str, Fingerprint]] = {}
        self.brought: dict[str, Sequence[Commit]] = {}

    async def instances(self) -> Sequence[ScratchFacts]:
        return tuple(self.made.values())

    async def find(self, scratch: str) -> ScratchFacts | None:
        return self.made.get(scratch)

    async def start(self, scratch: str) -> ScratchFacts:
        facts = self.run(scratch)
        return facts if facts.state is not ScratchState.PROMOTED else await self.promote(scratch)

    async def follow(self, scratch: str, *, delay: timedelta) -> ScratchFacts:
        facts = self.run(scratch)
        if facts.restored is None or facts.opened or facts.state is ScratchState.PROMOTED:
            raise UserError(f"`{facts.name}` cannot follow.")
        told = facts.following or Following(
            delay=delay,
            since=self._clock.now(),
            replayed_lsn=facts.restored.reached_lsn,
            replayed_at=facts.restored.reached_at,
        )
        told = told.model_copy(update={"delay": delay, "halting": None})
        self.made[scratch] = facts.model_copy(update={"following": told})
        return self._now(self.made[scratch], ScratchState.FOLLOWING)

    async def tend(self, scratch: str) -> ScratchFacts:
        facts = self._known(scratch)
        if facts.following is None:
            return facts
        until = self._clock.now() - facts.following.delay
        brought = [commit for commit in self.brought.get(scratch, ()) if commit.at <= until]
        if brought:
            changes = {"replayed_lsn": brought[-1].lsn, "replayed_at": brought[-1].at, "waits": Waiting.WAL}
            self.contents[scratch] = brought[-1].databases
            self._postgres.servers.pop(facts.name, None)
            told = facts.following.model_copy(update=changes)
            self.made[scratch] = facts.model_copy(update={"following": told})
        self.run(scratch)
        return self._now(self.made[scratch], ScratchState.FOLLOWING)

    async def halt(self, scratch: str, target: RecoveryTarget, progress: Progress = no_progress) -> ScratchFacts:
        facts = self._known(scratch)
        progress(ProgressReport(done=1000, total=1000, phase="replay"))
        if facts.following is None:
            if facts.restored is not None and facts.restored.target == target:
                return facts
            raise UserError(NOT_FOLLOWING.format(scratch))
        if facts.following.past(target):
            raise UserError(f"`{facts.name}` has replayed beyond {target}, and a replay never goes back.")
        reached = _reached(self.brought.get(scratch, ()), target)
        self.contents[scratch] = reached.databases
        self._postgres.servers.pop(facts.name, None)
        changes = {"target": target, "reached_lsn": reached.lsn, "reached_at": reached.at}
        restored = None if facts.restored is None else facts.restored.model_copy(update=changes)
        self.made[scratch] = facts.model_copy(update={"following": None, "restored": restored, "checks": {}})
        return self._now(self.made[scratch], ScratchState.STOPPED)

    async def judge(self, scratch: str, database: str, check: Check) -> None:
        facts = self._known(scratch)
        self.made[scratch] = facts.model_copy(update={"checks": {**facts.checks, database: check}})

    async def serving(self, scratch: str) -> Serving:
        self._known(scratch)
        return Serving(settings={"work_mem": "8MB"}, left={"shared_preload_libraries": "they are not here"})

    async def open(self, scratch: str, *, host: str, port: int) -> ScratchFacts:
        facts = self.run(scratch)
        if facts.following is not None or facts.loaded is not None:
            raise UserError(f"`{facts.name}` shows no moment.")
        if not (facts.opened and facts.address == f"{host}:{port}"):
            if facts.state is ScratchState.PROMOTED:
                raise UserError(f"`{facts.name}` shows no moment any more.")
            self.made[scratch] = facts.model_copy(update={"opened": True, "address": f"{host}:{port}"})
        return self.made[scratch]

    async def shut(self, scratch: str) -> None:
        facts = self._known(scratch)
        if facts.opened and facts.state is not ScratchState.PROMOTED:
            self.made[scratch] = facts.model_copy(update={"opened": False, "address": f"{facts.name}:5432"})

    def run(self, scratch: str) -> ScratchFacts:
        """What `start` does, for tests that arrange."""
        facts = self._known(scratch)
        if facts.name not in self._postgres.servers:
            server = MemoryServer(system_id=facts.system_id, in_recovery=facts.loaded is None)
            self._postgres.servers[facts.name] = server
            for name, fingerprint in self.contents[scratch].items():
                self._postgres.add(DatabaseRef(facts.name, name), fingerprint=fingerprint)
            stays = facts.state in STAYS
            facts = self._now(facts, facts.state if stays else ScratchState.PAUSED)
        return facts

    async def promote(self, scratch: str, *, above: int = 0) -> ScratchFacts:
        facts = self.run(scratch)
        if facts.following is not None or facts.loaded is not None:
            raise UserError(f"`{facts.name}` follows. Stop it at a moment first.")
        server = self._postgres.servers[facts.name]
        if server.in_recovery:
            server.in_recovery, server.timeline_id = False, max(1, above) + 1
        return self._now(facts, ScratchState.PROMOTED)

    async def stop(self, scratch: str) -> None:
        facts = self._known(scratch)
        if self._postgres.servers.pop(facts.name, None) is not None:
            stays = facts.state in STAYS
            self._now(facts, facts.state if stays else ScratchState.STOPPED)

    async def discard(self, scratch: str, *, mark: str) -> None:
        facts = self.made.get(scratch)
        if facts is None:
            return
        if facts.mark != mark or facts.state is ScratchState.PROMOTED:
            raise UserError(f"Scratch instance `{scratch}` is not this plan's to remove.")
        await self.stop(scratch)
        del self.made[scratch]
        self.gone.add(scratch)

    async def removed(self, scratch: str) -> bool:
        return scratch in self.gone and scratch not in self.made

    async def lacking(self, wanted: int) -> str:
        return self.lacks or ("The disk is full. Free space there, then try again." if wanted > DISK else "")

    async def sweep(self, wanted: Wanted) -> Sequence[ScratchFacts]:
        now = self._clock.now()
        due = [
            facts
            for facts in self.made.values()
            if (facts.state is ScratchState.BROKEN or (facts.expires_at <= now and facts.state in SWEPT))
            and not await wanted(facts.id)
        ]
        for facts in due:
            await self.discard(facts.id, mark=facts.mark)
        return due

    def _known(self, scratch: str) -> ScratchFacts:
        if scratch not in self.made:
            raise UserError(f"There is no scratch instance `{scratch}`.")
        return self.made[scratch]

    def _now(self, facts: ScratchFacts, state: ScratchState) -> ScratchFacts:
        address = ""
        if facts.name in self._postgres.servers:
            address = facts.address if facts.opened and facts.address else f"{facts.name}:5432"
        self.made[facts.id] = facts.model_copy(update={"state": state, "address": address})
        return self.made[facts.id]


class MemoryPhysical(PhysicalBackups):
    """`history` is what the WAL knows, by server. `spoil` breaks a backup."""

    def __init__(self, site: Site, postgres: MemoryPostgres, scratch: MemoryScratch, clock: Clock) -> None:
        self._site, self._postgres, self._scratch, self._clock = site, postgres, scratch, clock
        self.entries: dict[tuple[str, str], PhysicalEntry] = {}
        self.history: dict[str, MemoryHistory] = {}
        self.old: dict[str, Expiry] = {}
        self.lockable = False  # the buckets have Object Lock
        self.held: set[tuple[str, str]] = set()  # under legal hold
        self.bare: set[str] = set()  # servers without page checksums
        self.unseen: set[str] = set()  # servers whose restored pages nobody looks at
        self.gaps: tuple[Gap, ...] = ()  # in the archived WAL of every bucket
        self.silent: dict[str, str] = {}  # bucket -> what it says instead of an answer
        self.programs = {"pg_combinebackup": "18.2"}
        self.lacking: dict[str, Sequence[Lack] | DrError] = {}  # by server; an error: it does not answer

    def move_to(self, site: Site) -> None:
        """From now on the plan file says this."""
        self._site = site

    def spoil(self, server: str, backup: str, problem: str) -> None:
        """From now on this backup must not be used."""
        self.entries[server, backup] = self.entries[server, backup].model_copy(update={"problem": problem})

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        self._site.physical_of(server)
        mine = [entry for (name, _), entry in reversed(self.entries.items()) if name == server]
        return sorted(mine, key=lambda entry: entry.manifest.finished_at, reverse=True)

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        policy = self._site.physical_of(server)
        entries = [entry for entry in await self.catalogue(server) if entry.problem is None]
        commits = self._history(server).commits
        return tuple(
            RecoveryWindow(
                server=server,
                bucket=bucket,
                oldest=entries[-1].manifest.finished_at if entries else None,
                newest=commits[-1].at if commits and entries else None,
                newest_lsn=commits[-1].lsn if commits else "",
                timeline_id=self._history(server).timeline_id,
                gaps=self.gaps,
                fulls=sum(entry.manifest.kind is BackupKind.FULL for entry in entries),
                incrementals=sum(entry.manifest.kind is BackupKind.INCREMENTAL for entry in entries),
                dead_ends=self._history(server).dead_ends,
            )
            for bucket in reversed(policy.wal_buckets)
        )

    async def versions(self, server: str) -> Mapping[str, str]:
        self._site.physical_of(server)
        return self.programs

    async def lacks(self, server: str) -> Sequence[Lack]:
        found = self.lacking.get(server, ())
        if isinstance(found, DrError):
            raise found
        return found

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        key = (request.server, request.id)
        if key not in self.entries:
            progress(ProgressReport(done=1000, total=1000, phase="base"))
            self.entries[key] = await self._made(request)
        return self.entries[key]

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        entry = self._usable(server, backup)
        progress(ProgressReport(done=1000, total=1000, phase="verify"))
        self.entries[server, backup] = entry.model_copy(update={"verified_at": self._clock.now()})
        return self.entries[server, backup]

    async def copy(self, server: str, backup: str, progress: Progress) -> Sequence[str]:
        entry, left = self._usable(server, backup), await self.uncopied(server)
        for bucket, why in left.silent.items():
            raise TemporaryError(f"Base backup `{backup}` is whole in `{entry.bucket}` alone: `{bucket}`: {why}")
        progress(ProgressReport(done=1000, total=1000, phase="copy"))
        for name in left.backups:
            both = {"whole_in": self._site.physical_of(server).base_buckets, "behind": ()}
            self.entries[server, name] = self.entries[server, name].model_copy(update=both)
        return tuple(left.backups)

    async def uncopied(self, server: str) -> Uncopied:
        policy = self._site.physical_of(server)
        if not policy.copy_bucket:
            return Uncopied()
        entries = sorted(await self.catalogue(server), key=lambda entry: entry.manifest.finished_at)
        return Uncopied(
            backups={
                entry.manifest.id: entry.behind or (policy.copy_bucket,)
                for entry in entries
                if entry.problem is None and set(entry.whole_in) != set(policy.base_buckets)
            },
            spoiled={entry.manifest.id: entry.spoiled for entry in entries if entry.spoiled},
            silent=self.silent,
        )

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        made = self._scratch.made.get(request.id)
        if made is not None and made.restored is not None:
            return made.restored
        history = self._history(request.server)
        reached = _reached(history.commits, request.target)
        usable = [item for item in await self.catalogue(request.server) if item.problem is None]
        bases = [item for item in usable if item.manifest.finished_at <= reached.at]
        if not bases and request.backup is None:
            raise UserError(f"No base backup of `{request.server}` ends before {request.target}. Take a later moment.")
        base = bases[0] if request.backup is None else self._usable(request.server, request.backup)
        progress(ProgressReport(done=1000, total=1000, phase="replay"))
        restored = ScratchRestored(
            id=request.id,
            backup=base.manifest.id,
            target=request.target,
            reached_lsn=reached.lsn,
            reached_at=reached.at,
            timeline_id=history.timeline_id,
            checked_pages=request.server not in self.bare | self.unseen,
            without_checksums=request.server in self.bare,
            seconds={"fetch": 1.0, "replay": 2.0},
            bytes=3_000_000_000,
            plain_bytes=3_000_000_000,
            tools=self.programs,
        )
        now = self._clock.now()
        self._scratch.contents[request.id] = reached.databases
        self._scratch.made[request.id] = ScratchFacts(
            id=request.id,
            server=request.server,
            mark=request.mark,
            state=ScratchState.STOPPED,
            restored=restored,
            system_id=base.manifest.system_id,
            bytes=restored.bytes,
            made_at=now,
            expires_at=now + self._site.scratch.lifetime,
        )
        return restored

    async def feed(self, server: str, scratch: str) -> None:
        facts = self._scratch.made.get(scratch)
        if facts is None or facts.following is None:
            raise UserError(NOT_FOLLOWING.format(scratch))
        commits = tuple(self._history(server).commits)
        self._scratch.brought[scratch] = commits
        changes = {"fed_at": self._clock.now(), "fed_lsn": commits[-1].lsn if commits else ""}
        told = facts.following.model_copy(update=changes)
        self._scratch.made[scratch] = facts.model_copy(update={"following": told})

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        progress(ProgressReport(done=1, total=1, phase="find", unit="steps"))
        wanted = [moment for moment in self._history(request.server).moments if moment.change in request.changes]
        return sorted(wanted, key=lambda moment: moment.committed_at, reverse=True)

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        progress(ProgressReport(done=1, total=1, phase="find", unit="steps"))
        return [point for point in self._history(request.server).points if point.name == request.point]

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        progress(ProgressReport(done=1, total=1, phase="find", unit="steps"))
        history, target = self._history(request.server), request.target
        if target.name is not None:
            named = [Lsn.parse(point.lsn) for point in history.points if point.name == target.name]
            inside = [[each for each in history.commits if Lsn.parse(each.lsn) < at] for at in named]
            return tuple(_place(history, each, str(at)) for each, at in zip(inside, named, strict=True))
        if target.xid is not None and target.xid not in {commit.xid for commit in history.commits}:
            return ()
        inside = [[commit for commit in history.commits if _included(commit, target)]]
        own = target.xid is not None and target.inclusive
        return (_place(history, inside[0], inside[0][-1].lsn if own else ""),)

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        self.entries[server, backup] = self._known(server, backup).model_copy(update={"pinned": reason})
        if self.lockable:
            (self.held.add if reason else self.held.discard)((server, backup))

    async def holds(self, server: str, backup: str) -> Sequence[Hold]:
        self._known(server, backup)
        held = 4 if (server, backup) in self.held else 0
        buckets = self._site.physical_of(server).base_buckets
        return tuple(Hold(bucket=each, objects=4, held=held, lockable=self.lockable) for each in buckets)

    async def expiry(self, server: str) -> Expiry:
        for bucket, why in self.silent.items():
            raise TemporaryError(f"Bucket `{bucket}` cannot be looked at, so nothing of `{server}` is deleted. {why}")
        return self.old.get(server, Expiry(server=server))

    async def expire(self, server: str, expiry: Expiry) -> None:
        for backup in expiry.backups:
            self.entries.pop((server, backup), None)
        self.old.pop(server, None)

    async def remove(self, server: str, backup: str) -> None:
        if (server, backup) not in self.entries:
            return
        dead = self._history(server).dead_ends
        if why := why_it_stays(await self.catalogue(server), backup, self._site.physical_of(server), dead):
            raise UserError(why)
        del self.entries[server, backup]

    def _history(self, server: str) -> MemoryHistory:
        return self.history.setdefault(server, MemoryHistory())

    def _known(self, server: str, backup: str) -> PhysicalEntry:
        if (server, backup) not in self.entries:
            raise UserError(f"There is no base backup `{backup}` of `{server}`. Choose one of the catalogue.")
        return self.entries[server, backup]

    def _usable(self, server: str, backup: str) -> PhysicalEntry:
        entry = self._known(server, backup)
        if entry.problem is not None:
            raise VerificationError(entry.problem)
        return entry

    async def _made(self, request: BaseRequest) -> PhysicalEntry:
        policy, server = self._site.physical_of(request.server), await self._postgres.server(request.server)
        parent = request.parent
        if request.kind is BackupKind.INCREMENTAL:
            if parent is None:
                next_parent = parent_of_next(await self.catalogue(request.server), self._clock.now(), server.system_id)
                if next_parent is None:
                    raise UserError(f"There is no usable full backup of `{request.server}` to rest on.")
                parent = next_parent.manifest.id
            self._usable(request.server, parent)
        now = self._clock.now()
        lsn = str(Lsn(0x3000028))
        manifest = PhysicalManifest(
            id=request.id,
            server=request.server,
            kind=request.kind,
            parent=parent,
            system_id=server.system_id,
            server_version=server.version,
            timeline_id=self._history(request.server).timeline_id,
            start_lsn=lsn,
            stop_lsn=lsn,
            started_at=now - timedelta(seconds=10),
            finished_at=now,
            stored=StoredObject(
                bucket=policy.bucket, key=f"{policy.prefix}{request.id}/base.age", bytes=1000, sha256="0" * 64
            ),
            plain_bytes=2000,
            plain_sha256="1" * 64,
            recipients=policy.recipients,
        )
        return PhysicalEntry(
            manifest=manifest,
            manifest_sha256="2" * 64,
            whole_in=(policy.bucket,),
            behind=(policy.copy_bucket,) if policy.copy_bucket else (),
        )


def _place(history: MemoryHistory, inside: Sequence[Commit], lsn: str) -> Place:
    """With these commits in it. Without an LSN it stops before the next one."""
    later = history.commits[len(inside) :]
    return Place(
        lsn=lsn or (later[0] if later else inside[-1]).lsn,
        timeline_id=history.timeline_id,
        before_xid=inside[-1].xid if inside else None,
        before_at=inside[-1].at if inside else None,
        after_xid=later[0].xid if later else None,
        after_at=later[0].at if later else None,
        lost=len(later),
    )


def _included(commit: Commit, target: RecoveryTarget) -> bool:
    """Whether a replay to the target has it in."""
    if target.time is not None:
        return commit.at <= target.time if target.inclusive else commit.at < target.time
    if target.lsn is not None:
        place, wanted = Lsn.parse(commit.lsn), Lsn.parse(target.lsn)
        return place <= wanted if target.inclusive else place < wanted
    if target.xid is not None:
        return commit.xid <= target.xid if target.inclusive else commit.xid < target.xid
    return target.latest


def _reached(commits: Sequence[Commit], target: RecoveryTarget) -> Commit:
    """The last commit that is replayed. Raises UserError when the history does not reach the target."""
    found = [commit for commit in commits if _included(commit, target)]
    if not found:
        raise UserError(f"The archive does not reach {target}.")
    return found[-1]
