"""The archiver's own disk: what `pg_receivewal` writes, and closed segments until every bucket has them.

<directory>/receive/     of `pg_receivewal`: the open segment (`.partial`), histories, what was closed a moment ago
<directory>/closed/      closed segments that some bucket lacks
<directory>/aside/       open segments of timelines that ended; for people, nothing here reads or removes them
<directory>/state.json   whose WAL it is, and the newest segment that was closed

`pg_receivewal` goes on after the newest segment that it finds in its directory. So where it should go on is said by
a file of zeros under the name of the segment before; it looks at name and size alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import operator
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from actions.backup.segments import Segment, history_of
from actions.backup.wal_files import read_first_page
from actions.backup.wal_status import BaseWanted, DiskLost
from actions.errors import UserError, VerificationError
from actions.site import Frozen

PARTIAL = ".partial"


class SpoolState(Frozen):
    """What must be known before anything is received."""

    system_id: str
    segment_bytes: int
    newest: str = ""  # the newest segment that was closed; empty: begin where the slot begins
    # The newest one before a gap: what waits up to it does not say where to go on. Left out where there was none, so
    # that an archiver from before there was this can still be put back.
    passed: str = Field(default="", exclude_if=operator.not_)
    begun: bool = False  # something was received into this archive; without it the buckets are asked where to go on
    base_wanted: BaseWanted | None = None
    disk_lost: DiskLost | None = None
    unlisted: tuple[str, ...] = ()  # buckets that were silent when the others were asked where to go on


@dataclass(frozen=True)
class OpenFile:
    """The segment that is being written."""

    segment: Segment
    path: Path

    @property
    def name(self) -> str:
        return str(self.segment)


class WalSpool:
    """Blocking."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.receive, self.closed, self._aside = (directory / name for name in ("receive", "closed", "aside"))
        self._state: SpoolState | None = None
        self._unsaved = False
        self._changing = threading.RLock()  # the state is read and written by several threads

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Raise UserError when another archiver works in this directory."""
        for each in (self.receive, self.closed, self._aside):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"Another `drbot wal` works in `{self.directory}`. There must be one alone.") from error
            yield

    # ------------------------------------------------------------ state

    @property
    def state(self) -> SpoolState | None:
        """None on a fresh disk."""
        if self._state is None:
            with contextlib.suppress(FileNotFoundError):
                self._state = SpoolState.model_validate_json((self.directory / "state.json").read_bytes())
        return self._state

    def remember(self, state: SpoolState) -> None:
        """In force at once, also when the disk does not take it."""
        with self._changing:
            self._state, self._unsaved = state, True
            fresh = self.directory / "state.json.part"
            with fresh.open("w", encoding="utf-8") as stream:
                stream.write(state.model_dump_json())
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self.directory / "state.json")
            self._unsaved = False

    def save(self) -> None:
        """Write down what the disk did not take when it was remembered. Raises OSError while it still does not."""
        with self._changing:
            if self._unsaved and self._state is not None:
                self.remember(self._state)

    def change(self, **changes: object) -> None:
        """Remember the state with some of it changed, whoever else changes it now."""
        with self._changing:
            self.remember(self._known().model_copy(update=changes))

    def owe(self, buckets: Sequence[str]) -> None:
        """They were silent when the others were asked where to go on: each is remembered until it is settled."""
        with self._changing:  # read in it as well, or what another thread writes meanwhile is forgotten
            unlisted = self._known().unlisted
            if new := [each for each in buckets if each not in unlisted]:
                self.change(unlisted=(*unlisted, *new))

    def settle(self, bucket: str) -> None:
        """It has what it was owed."""
        with self._changing:
            self.change(unlisted=tuple(each for each in self._known().unlisted if each != bucket))

    def _known(self) -> SpoolState:
        if self.state is None:
            raise VerificationError(f"`{self.directory}` holds WAL of nobody.")
        return self.state

    # ------------------------------------------------------------ what there is

    def absorb(self) -> list[str]:
        """Take what `pg_receivewal` has closed; their names. Raises VerificationError for WAL of another server."""
        state = self._known()
        found = []
        for path in sorted(self.receive.iterdir()):
            try:
                segment = Segment.parse(path.name, state.segment_bytes)
            except ValueError:
                continue
            page = read_first_page(path)
            if page is None:
                continue  # our own mark of where to go on
            if (page.system_id, page.start) != (state.system_id, segment.start):
                raise VerificationError(
                    f"`{path}` holds WAL of system id {page.system_id} at {page.start}; expected was {state.system_id} "
                    f"at {segment.start}. Nothing of it is archived: look what `pg_receivewal` is connected to."
                )
            path.replace(self.closed / path.name)
            found.append(path.name)
        if found:
            # A later timeline may begin before what was closed of the one before it.
            if (newest := max(found)) > state.newest:
                self.change(newest=newest, begun=True)
            self._drop_outlived()
        return found

    def waiting(self) -> list[str]:
        """Closed segments on this disk, in order."""
        return sorted((path.name for path in self.closed.iterdir()), key=self._order)

    def path(self, name: str) -> Path:
        """Of a closed segment."""
        return self.closed / name

    def done(self, name: str) -> None:
        """Every bucket has it."""
        with self._changing:
            if name == self._known().newest:
                self.save()  # raises while the disk is full; the file itself says it until then
        (self.closed / name).unlink(missing_ok=True)

    def histories(self) -> list[tuple[int, str]]:
        """Timeline id and text of every history that was received."""
        named = ((history_of(path.name), path) for path in sorted(self.receive.iterdir()))
        return [(timeline_id, path.read_text()) for timeline_id, path in named if timeline_id is not None]

    def opened(self) -> OpenFile | None:
        """The segment that is written at the moment."""
        files = self._partials()
        return max(files, key=lambda each: self._order(each.name)) if files else None

    def newest(self) -> Segment | None:
        """The last segment that was closed of the last timeline."""
        name = self.newest_name()
        return Segment.parse(name, self.segment_bytes) if name else None

    def newest_name(self) -> str:
        """Of that segment; empty where nothing was closed yet, or nothing since a gap."""
        state = self._known()
        return max((name for name in [*self.waiting(), state.newest] if name > state.passed), default="")

    def closed_at(self, name: str) -> datetime:
        return datetime.fromtimestamp((self.closed / name).stat().st_mtime, UTC)

    def waiting_bytes(self) -> int:
        found = 0
        for path in self.closed.iterdir():
            with contextlib.suppress(FileNotFoundError):  # stored in this moment, in another thread
                found += path.stat().st_size
        return found

    @property
    def segment_bytes(self) -> int:
        return self._known().segment_bytes

    def has_room(self, segment: Segment | None) -> bool:
        """Whether `pg_receivewal` finds the file it goes on with, or can make it: it writes zeros into all of it first.
        None: nobody knows which one."""
        there = segment is not None and _size(self.receive / f"{segment}{PARTIAL}") == segment.size
        return there or self.free_bytes() >= self.segment_bytes

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def total_bytes(self) -> int:
        return shutil.disk_usage(self.directory).total

    # ------------------------------------------------------------ where to go on

    def go_on_at(self, segment: Segment | None) -> None:
        """Let the next `pg_receivewal` begin with this segment; None: where its slot begins.

        Open segments that it must not go on with are put aside.
        """
        self.absorb()
        self.drop_unfinished()
        for each in self._partials():
            if segment is None or (each.segment.number >= segment.number and each.segment != segment):
                each.path.replace(self._aside / each.path.name)
        for path in self.receive.iterdir():
            if len(path.name) == len(str(Segment(1, 1))) and read_first_page(path) is None:
                path.unlink()  # the mark of the last time
        if segment is not None and segment.number and not (self.receive / f"{segment}{PARTIAL}").exists():
            before = Segment(segment.timeline_id, segment.number - 1, segment.size)
            with (self.receive / str(before)).open("wb") as stream:
                stream.truncate(segment.size)

    def drop_unfinished(self) -> None:
        """Remove open segments that are not as long as they must be: `pg_receivewal` was ended, or its disk was full,
        before they were, and it takes up none of them. They hold zeros; one that does not is put aside."""
        for each in self._partials():
            if _size(each.path) in (0, each.segment.size):
                continue
            if read_first_page(each.path) is None:
                each.path.unlink()
            else:
                each.path.replace(self._aside / each.path.name)

    def _partials(self) -> list[OpenFile]:
        size = self._known().segment_bytes
        found = []
        for path in self.receive.glob(f"*{PARTIAL}"):
            with contextlib.suppress(ValueError):
                found.append(OpenFile(Segment.parse(path.name.removesuffix(PARTIAL), size), path))
        return found

    def _drop_outlived(self) -> None:
        """Open segments of an old timeline, once the new one's own has been closed: that holds all that counts."""
        newest = self.newest()
        for each in self._partials():
            if newest is not None and each.segment.timeline_id < newest.timeline_id:
                each.path.replace(self._aside / each.path.name)

    @staticmethod
    def _order(name: str) -> tuple[str, str]:
        """As `pg_receivewal` orders them: by place, then by timeline."""
        return name[8:24], name[:8]


def _size(path: Path) -> int | None:
    """None where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
