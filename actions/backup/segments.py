"""WAL segments by their names, and the timelines of a server as its `.history` files tell them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from actions.backup.physical import SEGMENT, Lsn
from actions.errors import VerificationError

_NAME = re.compile(r"[0-9A-F]{24}")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_LOG = 1 << 32  # bytes that the middle eight digits of a name count


@dataclass(frozen=True)
class Segment:
    """One file of WAL: the `number`-th stretch of `size` bytes, as written on one timeline."""

    timeline_id: int
    number: int
    size: int = SEGMENT

    @classmethod
    def parse(cls, name: str, size: int = SEGMENT) -> Segment:
        """Raises ValueError unless it looks like `000000010000000000000003`."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"`{name}` is no name of a WAL segment")
        timeline_id, log, rest = (int(name[place : place + 8], 16) for place in (0, 8, 16))
        if rest >= _LOG // size:
            raise ValueError(f"`{name}` is no name of a WAL segment of {size} bytes")
        return cls(timeline_id, log * (_LOG // size) + rest, size)

    @classmethod
    def holding(cls, lsn: Lsn, timeline_id: int, size: int = SEGMENT) -> Segment:
        """The segment that the byte at `lsn` lies in."""
        return cls(timeline_id, lsn // size, size)

    @property
    def start(self) -> Lsn:
        return Lsn(self.number * self.size)

    @property
    def end(self) -> Lsn:
        """The first byte after it."""
        return Lsn((self.number + 1) * self.size)

    def next(self) -> Segment:
        return Segment(self.timeline_id, self.number + 1, self.size)

    def __str__(self) -> str:
        per_log = _LOG // self.size
        return f"{self.timeline_id:08X}{self.number // per_log:08X}{self.number % per_log:08X}"


def history_name(timeline_id: int) -> str:
    return f"{timeline_id:08X}.history"


def history_of(name: str) -> int | None:
    """The timeline id of a history file's name; None for any other name."""
    found = _HISTORY.fullmatch(name)
    return int(found.group(1), 16) if found else None


@dataclass(frozen=True)
class Stretch:
    """The part of the WAL that was written on one timeline: from `begin` up to `end`, None while it is the last one."""

    timeline_id: int
    begin: Lsn
    end: Lsn | None


@dataclass(frozen=True)
class Timelines:
    """The way from the beginning of the WAL to one timeline, oldest stretch first."""

    stretches: tuple[Stretch, ...]

    @classmethod
    def alone(cls, timeline_id: int) -> Timelines:
        """Of a timeline without a history file: the first one, or the one that a base backup was made on."""
        return cls((Stretch(timeline_id, Lsn(0), None),))

    @classmethod
    def parse(cls, timeline_id: int, text: str) -> Timelines:
        """What `<timeline id>.history` says. Raises VerificationError when it is no such file."""
        stretches: list[Stretch] = []
        begin = Lsn(0)
        for line in text.splitlines():
            words = line.split(maxsplit=2)
            if not words or words[0].startswith("#"):
                continue
            try:
                parent, end = int(words[0]), Lsn.parse(words[1])
            except (ValueError, IndexError) as error:
                raise VerificationError(f"`{history_name(timeline_id)}` holds a line that is no switch.") from error
            if end < begin or (stretches and parent <= stretches[-1].timeline_id) or parent >= timeline_id:
                raise VerificationError(f"`{history_name(timeline_id)}` is not in order.")
            stretches.append(Stretch(parent, begin, end))
            begin = end
        if not stretches:
            raise VerificationError(f"`{history_name(timeline_id)}` names no timeline it comes from.")
        return cls((*stretches, Stretch(timeline_id, begin, None)))

    @property
    def timeline_id(self) -> int:
        return self.stretches[-1].timeline_id

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(stretch.timeline_id for stretch in self.stretches)

    def reaches(self, timeline_id: int, lsn: Lsn) -> bool:
        """Whether what was written at `lsn` on that timeline is part of this way."""
        return any(
            stretch.timeline_id == timeline_id and (stretch.end is None or lsn <= stretch.end)
            for stretch in self.stretches
        )

    def go_on(self, at: Segment) -> Segment | None:
        """Where the stream of this way is to be asked for by whoever has everything before `at`; None: `at` is on a
        timeline that does not lead here.

        What lies behind the end of its timeline is asked for of the next one. The end itself counts as behind: a server
        that branched off exactly there streams nothing of the old timeline, which `pg_receivewal` takes for an error.
        """
        for place, stretch in enumerate(self.stretches):
            if stretch.timeline_id == at.timeline_id:
                if stretch.end is None or at.start < stretch.end:
                    return at
                fork = Segment.holding(stretch.end, at.timeline_id, at.size)
                later = self.stretches[place + 1 :]
                following = next(each for each in later if each.end is None or fork.start < each.end)
                return replace(fork, timeline_id=following.timeline_id)
        return None

    def choices(self, number: int, size: int) -> Sequence[Segment]:
        """Every segment of this number that may be replayed, in PostgreSQL's order: newest timeline first.

        A new timeline begins with a copy of the segment it branches off in, so its own file is the better one.
        """
        return [
            Segment(stretch.timeline_id, number, size)
            for stretch in reversed(self.stretches)
            if stretch.begin // size <= number and (stretch.end is None or number <= stretch.end // size)
        ]

    def numbers(self, names: Sequence[str], size: int) -> Iterator[int]:
        """The numbers of those segments that belong to this way; what is no segment of this size is passed over."""
        for name in names:
            try:
                segment = Segment.parse(name, size)
            except ValueError:
                continue
            if segment in self.choices(segment.number, size):
                yield segment.number

    def end_of(self, segment: Segment) -> Lsn:
        """Where the bytes of this segment that belong to this way end: later ones were written after a switch."""
        ends = [each.end for each in self.stretches if each.timeline_id == segment.timeline_id and each.end is not None]
        return min([segment.end, *ends])
