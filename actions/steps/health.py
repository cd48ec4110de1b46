"""How the backups stand: what is read of the world once, for the status and for the alarms alike."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from actions.backup.physical import PhysicalEntry, Proof, RecoveryWindow, Uncopied
from actions.backup.proofs import Proofs
from actions.backup.wal_source import AlarmKind
from actions.backup.wal_status import WalStatus, read_status
from actions.backup.windows import ends_of, reachable
from actions.engines import engine_of
from actions.errors import DrError
from actions.ports import CatalogueEntry, Ports
from actions.site import BackupPolicy, Database, PhysicalPolicy
from actions.steps.idle import idle
from actions.steps.mirrors import Mirror, mirrors
from actions.steps.postures import apart, left_behind
from actions.steps.side_copies import SideCopies, by_itself, replica_copies, side_copies
from actions.steps.upgrades import Upgrades, of_bases, of_dumps, upgrades

PROVE = "backup.prove"
"""The action of a restore test."""


def dump_target(database: str) -> str:
    """What a test of the dumps of this database is called beside those of servers, which have names of their own."""
    return f"dump:{database}"


@dataclass(frozen=True)
class Archiver:
    """What `drbot wal` last said of itself."""

    said_at: datetime
    covered_until: datetime | None  # everything committed until then is in the bucket that survives the region
    wants_base: str = ""  # why a new base backup is needed; empty when it is not
    trouble: Mapping[str, str] = field(default_factory=dict)  # kind -> sentence


@dataclass(frozen=True)
class Dumps:
    """The dumps of one database. `problem` says why they could not be read."""

    key: str
    database: Database
    policy: BackupPolicy
    entries: Sequence[CatalogueEntry] = ()
    problem: str = ""
    proofs: Sequence[Proof] = ()
    upgrades: Upgrades = field(default_factory=Upgrades)  # since the newest proof
    next_test: datetime | None = None  # when the bot tests a dump by itself next
    test_every: timedelta | None = None  # the longest time between two such tests


@dataclass(frozen=True)
class Bases:
    """The base backups and the WAL of one server. `problem` says why they could not be read."""

    policy: PhysicalPolicy
    databases: tuple[str, ...]
    rpo: timedelta
    entries: Sequence[PhysicalEntry] = ()
    windows: Sequence[RecoveryWindow] = ()
    proofs: Sequence[Proof] = ()
    archiver: Archiver | None = None
    archived: bool = False  # an archiver of ours is wanted, so that its silence is a fault
    problem: str = ""
    left_behind: str = ""  # why they are of no use once the region is lost; empty where they are
    apart: bool = False  # two buckets of different regions hold the WAL
    uncopied: Uncopied = field(default_factory=Uncopied)
    idle: bool = False  # nothing was committed since the newest commit of the window, by the server's own word
    full_since: datetime | None = None  # a full base backup has been at work since then
    next_test: datetime | None = None  # when the bot tests a restore by itself next
    test_every: timedelta | None = None  # the longest time between two such tests
    upgrades: Upgrades = field(default_factory=Upgrades)  # since the newest proof
    unheard: str = ""  # why nobody knows what the archiver says of itself, while its bucket is away

    @property
    def server(self) -> str:
        return self.policy.server

    @property
    def subject(self) -> str:
        """What its alarms are about; never the same as a database's."""
        return f"server:{self.policy.server}"

    @property
    def window(self) -> RecoveryWindow | None:
        """What can be reached from the copy that would survive the loss of the region."""
        return self.windows[0] if self.windows else None

    @property
    def living(self) -> Sequence[PhysicalEntry]:
        """The base backups but those of a branch that the server has left, which lead to no moment of the window."""
        dead = {} if self.window is None else self.window.dead_ends
        return [entry for entry in self.entries if entry.manifest.id not in dead]

    def exposure(self, now: datetime) -> timedelta | None:
        """How much would be lost if the region were lost now; None where nothing at all could be reached."""
        window = self.window
        if self.left_behind or window is None or window.newest is None:
            return None
        stretches = reachable(window, ends_of(self.entries, window))
        if not stretches:
            return None
        if stretches[-1].end < window.newest:
            # Behind a gap lies what no base backup leads to, however much of it is archived.
            return max(timedelta(0), now - stretches[-1].end)
        if self.idle:
            return timedelta(0)
        covered = window.newest
        # A server on which nobody writes loses nothing, however old its newest commit is: only the archiver knows.
        if self.archiver is not None and self.archiver.covered_until is not None:
            covered = max(covered, self.archiver.covered_until)
        return max(timedelta(0), now - covered)


@dataclass(frozen=True)
class Health:
    """Everything about backups, as of one moment."""

    at: datetime
    dumps: tuple[Dumps, ...] = ()
    bases: tuple[Bases, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    beside: tuple[SideCopies, ...] = ()
    problem: str = ""  # why nothing at all could be read; empty where it was

    def base_of(self, server: str) -> Bases | None:
        """None where the plan file has no base backups of this server."""
        return next((item for item in self.bases if item.server == server), None)

    def proven(self, subject: str) -> str:
        """The newest restore test of a subject that passed; empty where none is known."""
        parts = [(dumps.key, dumps.proofs) for dumps in self.dumps]
        parts += [(bases.subject, bases.proofs) for bases in self.bases]
        found = [proof for key, proofs in parts if key == subject for proof in proofs if proof.problem is None]
        return found[0].id if found else ""


_MIRRORS = SideCopies("part:mirrors", "mirrors of manifests", covers=("manifests:",))


async def health(
    ports: Ports, *, databases: Sequence[str] | None = None, beside: bool = True, replicas: bool = True
) -> Health:
    """Read it all, or what concerns some databases. What does not answer is told by its `problem`, and a part that
    cannot be read at all by a problem of that part: the others are there all the same. Without `beside`
    nobody looks at the copies that are made once a day beside those of databases, without `replicas` not at those that
    the store makes."""
    site = ports.site
    keys = sorted(site.backups) if databases is None else list(databases)
    servers = sorted(site.physical) if databases is None else sorted({site.database(key).server for key in keys})
    dumps = await asyncio.gather(*(_dumps(ports, key) for key in keys))
    bases = await asyncio.gather(*(_bases(ports, name) for name in servers if name in site.physical))
    found = Health(at=ports.clock.now(), dumps=tuple(dumps), bases=tuple(bases))
    if databases is not None:
        return found
    repositories, part = await by_itself(_MIRRORS, mirrors(ports))
    others = await side_copies(ports, look=beside)
    copied = await replica_copies(ports, look=replicas)
    return replace(found, at=ports.clock.now(), mirrors=tuple(repositories), beside=(*others, *copied, part))


async def _dumps(ports: Ports, key: str) -> Dumps:
    database, policy = ports.site.database(key), ports.site.backup(key)
    try:
        entries, proofs = await asyncio.gather(
            ports.backups.catalogue(key), Proofs(ports.objects, ports.secrets).newest(policy)
        )
    except DrError as error:  # a lost bucket or revoked keys too: the others must still be told of
        return Dumps(key, database, policy, problem=str(error))
    target = dump_target(key)
    return Dumps(
        key,
        database,
        policy,
        entries,
        proofs=proofs,
        upgrades=upgrades(proofs, await of_dumps(ports, key)) if proofs else Upgrades(),
        next_test=await ports.runs.next_of(PROVE, target),
        test_every=await ports.runs.rhythm_of(PROVE, target),
    )


async def _bases(ports: Ports, server: str) -> Bases:
    policy = ports.site.physical_of(server)
    here = {key: database for key, database in ports.site.databases.items() if database.server == server}
    rpo = min((database.rpo for database in here.values()), default=timedelta(minutes=15))
    try:
        archived = engine_of(policy).archived_by_us and bool(policy.wal_buckets)
        entries, windows, uncopied, proofs, said = await asyncio.gather(
            ports.physical.catalogue(server),
            ports.physical.windows(server),
            ports.physical.uncopied(server),
            Proofs(ports.objects, ports.secrets).newest(policy),
            _said(ports, policy) if archived else _nothing_said(),
        )
    except DrError as error:
        return Bases(policy, tuple(sorted(here)), rpo, problem=str(error))
    unheard = said if isinstance(said, str) else ""
    archiver = archiver_of(said, windows, entries) if isinstance(said, WalStatus) else None
    behind = left_behind(ports.site, policy)
    databases = tuple(sorted(here))
    at_rest = not engine_of(policy).archived_by_us and bool(windows) and await idle(ports, server, windows[0], entries)
    return Bases(
        policy,
        databases,
        rpo,
        entries,
        windows,
        proofs,
        archiver,
        archived=archived,
        left_behind=behind,
        apart=apart(ports.site, policy),
        uncopied=uncopied,
        idle=at_rest,
        full_since=await ports.runs.full_since(server),
        next_test=await ports.runs.next_of(PROVE, server),
        test_every=await ports.runs.rhythm_of(PROVE, server),
        upgrades=upgrades(proofs, await of_bases(ports, server)) if proofs else Upgrades(),
        unheard=unheard,
    )


async def _said(ports: Ports, policy: PhysicalPolicy) -> WalStatus | str | None:
    """The archiver's status; why it cannot be read where base backups are in two regions, one of which may be lost."""
    try:
        return await read_status(ports.objects, policy)
    except DrError as error:
        if not policy.copy_bucket:
            raise
        return str(error)


async def _nothing_said() -> None:
    """An engine with an archiver of its own, which says nothing."""


def archiver_of(said: WalStatus, windows: Sequence[RecoveryWindow], entries: Sequence[PhysicalEntry]) -> Archiver:
    """Out of its status, and of the base backups that may have answered it since."""
    covered = said.covered(windows[0].bucket if windows else "")
    wanted = said.base_wanted  # the archiver forgets it once it has seen the backup, later than we see it
    return Archiver(
        said_at=said.at,
        covered_until=covered,
        wants_base="" if wanted is None or wanted.answered_by(entries, said.system_id) else wanted.reason,
        # A gap is an alarm of its own.
        trouble={str(alarm.kind): alarm.text for alarm in said.alarms if alarm.kind is not AlarmKind.GAP},
    )
