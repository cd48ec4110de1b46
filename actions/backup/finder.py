"""Who harmed a table, and when: read from the records of the WAL as `pg_waldump` prints them.

WAL knows files, not tables. A DROP is a commit that lists the table's file among those it removes, and its oid among
the statistics it drops; a TRUNCATE removes the file and makes a new one in its place; a rewrite (`VACUUM FULL`, some
`ALTER TABLE`) does so as well, but fills the new one, and harms nobody. A DELETE or an UPDATE is a heap record on the
file. A DROP DATABASE removes its folder, before it commits. Seen with PostgreSQL 17 and 18.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from actions.backup.physical import (
    Change,
    FindRequest,
    Lsn,
    Moment,
    NamedPoint,
    PointRequest,
)
from actions.errors import UserError, VerificationError

RESOURCES = ("Transaction", "Heap", "Heap2", "Storage", "Standby", "XLOG", "Database")
"""The resource managers whose records are needed."""

HEAD = re.compile(
    r"rmgr: (\w+) +len \(rec/tot\): *\d+/ *\d+, tx: *(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), .*? desc: (\w+) ?"
)
_BLOCK = re.compile(r"rel \d+/(\d+)/(\d+) (?:fork \w+ )?blk")
PREPARED = re.compile(r"(\d+): ")
_COMMITTED_AT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC")
_LOCK = re.compile(r"xid \d+ db (\d+) rel (\d+)")
_FILE = re.compile(r"(\d+)/(\d+)$")
_RELATION_STATISTICS = "2"  # PGSTAT_KIND_RELATION
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_LIST_OF_DATABASES = " rel 1664/0/1262 "
_NEAR = 1000  # commits of others between two records that one DROP DATABASE writes at its beginning
_HARMS = {"DELETE": Change.DELETE, "UPDATE": Change.UPDATE, "HOT_UPDATE": Change.UPDATE}


class WalRecords(Protocol):
    """`pg_waldump`; `actions.adapters.pg_waldump` is the adapter."""

    def lines(self, directory: Path, first: str, last: str, *, resources: Sequence[str]) -> Iterator[str]:
        """The records of these segments, which follow each other; times in UTC. Blocking. Raises VerificationError
        where a record before the last segment cannot be read."""


@dataclass(frozen=True)
class _Place:
    """A place in the WAL, and what had been committed until then."""

    lsn: str
    commits: int
    last: tuple[int, datetime] | None


@dataclass(frozen=True)
class _Lock(_Place):
    """A relation locked against everybody."""

    oid: int


@dataclass
class _Transaction:
    """What a transaction that has not ended yet did, as far as it matters."""

    rows: Counter[Change] = field(default_factory=Counter)
    created: list[int] = field(default_factory=list)  # files of our database, in the order they were made
    filled: set[int] = field(default_factory=set)  # those of them that got pages
    locks: list[_Lock] = field(default_factory=list)
    unmade: _Place | None = None  # where it began to drop our database as a whole

    def take(self, other: _Transaction) -> None:
        self.rows += other.rows
        self.created += other.created
        self.filled |= other.filled
        self.locks += other.locks
        self.unmade = self.unmade or other.unmade


class Finder:
    """Takes records in the order of the WAL. `files` are those the table had, by base backups and by the server."""

    def __init__(self, request: FindRequest, *, database_oid: int, files: Iterable[int], timeline_id: int) -> None:
        self._request, self._database = request, str(database_oid)
        self._files = set(files)
        self.timeline_id = timeline_id
        self._open: dict[int, _Transaction] = {}
        self._found: list[tuple[Moment, int]] = []  # with the number of commits up to it
        self._unfollowed = 0  # moments at the end of `_found` that have no commit after them yet
        self._commits = 0
        self._last: tuple[int, datetime] | None = None
        self._place = f"/{self._database}/"
        self._begun: dict[int, _Place] = {}  # open transactions, where each wrote first
        self._marked: _Place | None = None  # where the list of databases was last changed in place

    def moments(self) -> list[Moment]:
        """Newest first."""
        found = [moment.model_copy(update={"lost": self._commits - number}) for moment, number in self._found]
        return sorted(found, key=lambda moment: (moment.committed_at, Lsn.parse(moment.commit_lsn)), reverse=True)

    def feed(self, line: str) -> None:
        head = HEAD.match(line)
        if head is None:
            return
        resource, xid, lsn, word = head[1], int(head[2]), head[3], head[4]
        if xid and xid not in self._begun:
            self._begun[xid] = self._at(lsn)
        if resource == "Transaction":
            self._ended(word, xid, lsn, line[head.end() :])
        elif resource == "Standby":
            self._locked(word, xid, lsn, line[head.end() :])
            return
        elif self._place in line:
            self._changed(resource, word, xid, line)
        elif resource == "Database":
            self._unmade(word, xid, lsn, line[head.end() :])
        elif word == "INPLACE" and _LIST_OF_DATABASES in line:
            self._marked = self._at(lsn)

    def _changed(self, resource: str, word: str, xid: int, line: str) -> None:
        """What a record does to a file of our database."""
        if resource == "Heap" and word in _HARMS:
            if any(file in self._files for file in self._touched(line)):
                self._of(xid).rows[_HARMS[word]] += 1
        elif resource == "Storage" and word == "CREATE":
            made = _FILE.search(line.rstrip())
            if made is not None and made[1] == self._database:
                self._of(xid).created.append(int(made[2]))
        if resource != "Storage" and xid in self._open and self._open[xid].created:
            self._open[xid].filled.update(self._touched(line))

    def _at(self, lsn: str) -> _Place:
        return _Place(lsn, self._commits, self._last)

    def _unmade(self, word: str, xid: int, lsn: str, text: str) -> None:
        """A database is first marked as invalid, which nothing takes back, and its files go long before the commit."""
        if word != "DROP" or not any(path.endswith(f"/{self._database}") for path in text.split()):
            return
        begun, marked = self._begun.get(xid, self._at(lsn)), self._marked
        # The mark belongs to no transaction, and `VACUUM` writes such records as well.
        near = marked is not None and abs(begun.commits - marked.commits) < _NEAR
        places = [begun, marked] if near and marked is not None else [begun]
        self._of(xid).unmade = min(places, key=lambda place: Lsn.parse(place.lsn))

    def _locked(self, word: str, xid: int, lsn: str, text: str) -> None:
        if word != "LOCK":
            return
        for database, oid in _LOCK.findall(text):
            if database == self._database:
                self._of(xid).locks.append(_Lock(lsn, self._commits, self._last, int(oid)))

    def _of(self, xid: int) -> _Transaction:
        return self._open.setdefault(xid, _Transaction())

    def _touched(self, line: str) -> list[int]:
        return [int(file) for database, file in _BLOCK.findall(line) if database == self._database]

    def _ended(self, word: str, xid: int, lsn: str, text: str) -> None:
        prepared = PREPARED.match(text)
        if prepared is not None:
            xid = int(prepared[1])
        parts = {name: words.split() for name, _, words in (part.partition(": ") for part in text.split("; "))}
        whole = self._open.pop(xid, _Transaction())
        self._begun.pop(xid, None)
        for sub in parts.get("subxacts", []):
            self._begun.pop(int(sub), None)
            whole.take(self._open.pop(int(sub), _Transaction()))
        if word.startswith("COMMIT"):
            self._committed(xid, lsn, committed_at(text, lsn), whole, parts)
        elif not word.startswith("ABORT") and whole != _Transaction():
            self._open[xid] = whole  # prepared, or only a note of which transactions belong together

    def _committed(self, xid: int, lsn: str, at: datetime, done: _Transaction, parts: dict[str, list[str]]) -> None:
        self._commits += 1
        for number in range(len(self._found) - self._unfollowed, len(self._found)):
            moment, commits = self._found[number]
            self._found[number] = (moment.model_copy(update={"after_at": at}), commits)
        self._unfollowed = 0
        files = frozenset(self._files)
        removed = self._removed(done, parts)
        if done.unmade is not None:
            removed = Change.DROP
        change = removed or self._rows(done)
        if change is not None and change in self._request.changes and self._asked_for(at):
            lock: _Place | None = None if removed is None else self._lock_of_table(done, parts, files)
            lock = done.unmade or lock
            before = (self._last if lock is None else lock.last) or (None, None)
            moment = Moment(
                change=change,
                xid=xid,
                commit_lsn=lsn,
                committed_at=at,
                timeline_id=self.timeline_id,
                rows=done.rows[change],
                before_xid=before[0],
                before_at=before[1],
                lock_lsn=None if lock is None else lock.lsn,
            )
            self._found.append((moment, self._commits if lock is None else lock.commits + 1))
            self._unfollowed = 1
        self._last = (xid, at)

    def _asked_for(self, at: datetime) -> bool:
        since, until = self._request.since, self._request.until
        return (since is None or at >= since) and (until is None or at <= until)

    def _rows(self, done: _Transaction) -> Change | None:
        """Deletes weigh more than updates."""
        wanted = [change for change in (Change.DELETE, Change.UPDATE) if change in self._request.changes]
        return next((change for change in wanted if done.rows[change]), None)

    def _removed(self, done: _Transaction, parts: dict[str, list[str]]) -> Change | None:
        """What became of the table's file, where this commit removes it; the new file is followed from here on."""
        dropped = [file for path in parts.get("rels", []) if (file := self._ours(path)) is not None]
        mine = [file for file in dropped if file in self._files]
        if not mine:
            return None
        statistics, followed = self._statistics(parts), list[int]()
        gone = statistics - set(done.created)
        # A rewrite fills a table of its own and drops that: its oid was the name of its file, which the table keeps.
        fresh = next((made for made in done.created if made in statistics), None)
        for removed in mine:
            if fresh is not None and removed not in gone:
                followed.append(fresh)
            elif done.created and not gone:
                followed.append(self._successor(removed, dropped, done))
        self._files = (self._files - set(mine)) | set(followed)
        if gone or len(followed) < len(mine):
            # With an index dropped beside a rewrite it cannot be told from a DROP: rather too much than hidden.
            return Change.DROP
        return None if done.filled.issuperset(followed) else Change.TRUNCATE

    def _lock_of_table(self, done: _Transaction, parts: dict[str, list[str]], files: frozenset[int]) -> _Lock | None:
        """Where it locked the table: known by its oid, which the first file of a table is called after; else the first
        lock on anything that is gone, else the first one."""
        known = files | {self._request.table_oid}
        for oids in (known, self._statistics(parts), {lock.oid for lock in done.locks}):
            found = [lock for lock in done.locks if lock.oid in oids]
            if found:
                return min(found, key=lambda lock: Lsn.parse(lock.lsn))
        return None

    def _ours(self, path: str) -> int | None:
        """The file of a path, where it is in our database."""
        found = _FILE.search(path)
        return int(found[2]) if found is not None and found[1] == self._database else None

    def _statistics(self, parts: dict[str, list[str]]) -> set[int]:
        """Oids of relations of our database whose statistics the commit drops: those that are gone for good."""
        items = [item.split("/") for item in parts.get("dropped stats", [])]
        return {int(oid) for kind, database, oid in items if (kind, database) == (_RELATION_STATISTICS, self._database)}

    @staticmethod
    def _successor(file: int, dropped: list[int], done: _Transaction) -> int:
        """A TRUNCATE replaces file by file, and its commit lists what it removes from the last to the first."""
        if len(dropped) == len(done.created):
            return done.created[dropped[::-1].index(file)]
        return done.created[0]


class NoWalError(UserError):
    """There is no segment at all to look through."""


def find(
    records: WalRecords, directory: Path, request: FindRequest, *, database_oid: int, files: Iterable[int]
) -> list[Moment]:
    """Read all segments of `directory`, one timeline after the other, and give what was found, newest first. Blocking.

    The segments must follow each other without a gap. History files in the directory tell where a timeline was left.
    Raises NoWalError when there is none, VerificationError when one cannot be read.
    """
    finder = Finder(request, database_oid=database_oid, files=files, timeline_id=0)
    for finder.timeline_id, line in in_order(records, directory, request.server, RESOURCES):
        finder.feed(line)
    return finder.moments()


def find_points(records: WalRecords, directory: Path, request: PointRequest) -> list[NamedPoint]:
    """The restore points of this name, newest first, on the same terms as `find`. Blocking."""
    found: list[NamedPoint] = []
    last: datetime | None = None
    for timeline_id, line in in_order(records, directory, request.server, ("Transaction", "XLOG")):
        head = HEAD.match(line)
        if head is None:
            continue
        if head[1] == "Transaction" and head[4].startswith("COMMIT"):
            last = committed_at(line, head[3])
            if found and found[-1].after_at is None:
                found = [point if point.after_at else point.model_copy(update={"after_at": last}) for point in found]
        elif (head[1], head[4], line[head.end() :]) == ("XLOG", "RESTORE_POINT", request.point):
            point = NamedPoint(name=request.point, lsn=head[3], timeline_id=timeline_id, before_at=last)
            found.append(point)
    return found[::-1]


def in_order(records: WalRecords, directory: Path, server: str, resources: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The records of all segments, each once, with the timeline id they are on."""
    found = sorted(path.name for path in directory.iterdir() if _SEGMENT.fullmatch(path.name))
    if not found:
        raise NoWalError(f"No WAL of `{server}` is archived for that time. Look with `/dr-backup status`.")
    switches, reached = _switches(directory), Lsn(0)
    for number in sorted({int(name[:8], 16) for name in found}):
        mine = [name for name in found if int(name[:8], 16) == number]
        end = switches.get(number)
        for line in records.lines(directory, mine[0], mine[-1], resources=resources):
            head = HEAD.match(line)
            at = Lsn(0) if head is None else Lsn.parse(head[3])
            # The first segment of a timeline repeats what was in that segment before it began.
            if at > reached and (end is None or at < end):
                yield number, line
                reached = at


def committed_at(text: str, lsn: str) -> datetime:
    at = _COMMITTED_AT.search(text)
    if at is None:
        raise VerificationError(f"The commit at {lsn} has no time that can be read.")
    return datetime.fromisoformat(f"{at[1]}+00:00")


def _switches(directory: Path) -> dict[int, Lsn]:
    """Timeline id -> where it was left for the next one of the newest history."""
    newest = max(directory.glob("*.history"), default=None)
    if newest is None:
        return {}
    lines = [line.split() for line in newest.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {int(words[0]): Lsn.parse(words[1]) for words in lines}


def databases_of(request: FindRequest, maps: Iterable[Mapping[str, int]]) -> Sequence[int]:
    """The oid of the database that is there now, and those that base backups hold under its name: it may have been
    dropped and made anew. Raises UserError when nobody knows it."""
    held = [known.get(request.database) for known in maps]
    found = [oid for oid in dict.fromkeys([request.database_oid, *held]) if oid]
    if not found:
        raise UserError(
            f"No base backup holds a database `{request.database}`. Look for its name with `/dr-backup status`."
        )
    return found


def files_of(table: str, maps: Iterable[Mapping[str, int]], *, now: int | None = None) -> set[int]:
    """Every file the table had, by the maps of the base backups (`PhysicalManifest.relfilenodes` of its database) and
    by the server. Raises UserError, naming what is alike, when nobody knows it."""
    wanted = table if "." in table else f"public.{table}"
    known = list(maps)
    files = {found[wanted] for found in known if wanted in found} | ({now} if now is not None else set())
    if files:
        return files
    bare = wanted.rpartition(".")[2].strip('"')
    alike = sorted({name for found in known for name in found if bare in name})[:5]
    hint = f"There are: {', '.join(f'`{name}`' for name in alike)}." if alike else "Name it with its schema."
    raise UserError(f"No base backup knows a table `{wanted}`. {hint}")
