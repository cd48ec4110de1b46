"""The table of contents of a `pg_dump -Fc` archive, read and written.

It tells what `pg_restore` is about to do before it does it: extensions, owners, values of sequences. Owners are changed
here, since `pg_restore` can only keep all of them or none, and the data is followed, so that each job of a restore is
given that of its own tables alone: `pg_dump` cannot write into a pipe where it lies. The
layout is the one of PostgreSQL's pg_backup_archiver.c and pg_backup_custom.c, archive versions 1.12 (PostgreSQL 9.0) to
1.16 (PostgreSQL 17 and 18).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise

from actions.backup.manifest import Sequence as SequenceState
from actions.errors import VerificationError

MAGIC = b"PGDMP"
CUSTOM = 1
OLDEST, NEWEST = (1, 12), (1, 16)
DATA, LARGE_OBJECTS = 1, 3  # BLK_DATA, BLK_BLOBS
POST_DATA = 4  # SECTION_POST_DATA
NO_SECTION = 1  # SECTION_NONE: comments and rights, which follow what they belong to
INTEGER = struct.Struct("<xi")  # a sign, which is 0 for every length and number of an entry, and four bytes
EMPTY_CHUNK = INTEGER.pack(0)
SETVAL = re.compile(r"SELECT pg_catalog\.setval\( ?(E?)'((?:[^']|'')*)', (-?\d+), (true|false)\);")
SCHEMA_OF_EXTENSION = re.compile(r'WITH SCHEMA (?:"((?:[^"]|"")*)"|([^";]+));')


class IncompleteError(Exception):
    """More bytes are needed to read the table of contents."""


@dataclass(frozen=True)
class Entry:
    """One entry. `kind` is pg_dump's word, such as TABLE, SCHEMA, EXTENSION, ACL."""

    id: int
    kind: str
    tag: str
    namespace: str | None
    section: int
    owner: str
    definition: str
    copy: str  # the statement that takes its rows
    copy_at: range  # of its bytes in the header
    owner_at: range
    needs: frozenset[int] = frozenset()  # numbers of the entries that it stands on


@dataclass(frozen=True)
class Contents:
    """The header of an archive: its entries and the bytes they were read from."""

    version: tuple[int, int]
    compression: int  # 0 is none
    server_version: str
    dump_version: str
    created: datetime  # local time of the machine that dumped, read as UTC
    entries: tuple[Entry, ...]
    header: bytes

    @property
    def owners(self) -> frozenset[str]:
        return frozenset(entry.owner for entry in self.entries if entry.owner)

    def extensions(self) -> dict[str, str]:
        """Extension -> schema, "" where the extension chooses it."""
        found = {}
        for entry in self.entries:
            if entry.kind == "EXTENSION":
                match = SCHEMA_OF_EXTENSION.search(entry.definition)
                quoted, plain = match.groups() if match else ("", "")
                found[entry.tag] = quoted.replace('""', '"') if quoted else (plain or "").strip()
        return found

    def sequences(self) -> dict[tuple[str, str], SequenceState]:
        """(schema, name) -> value, as the archive will set it: sequences are not part of any snapshot."""
        found = {}
        for entry in self.entries:
            match = SETVAL.search(entry.definition) if entry.kind == "SEQUENCE SET" else None
            if match is not None:
                state = SequenceState(last_value=int(match[3]), is_called=match[4] == "true")
                found[entry.namespace or "", entry.tag] = state
        return found

    def with_changes(self, *, owner: Callable[[Entry], str], copy: Callable[[Entry], str]) -> bytes:
        """The header with other owners, and other statements that take rows."""
        parts, place = [], 0
        for entry in self.entries:
            for at, text in ((entry.copy_at, copy(entry)), (entry.owner_at, owner(entry))):
                parts += [self.header[place : at.start], _written(text)]
                place = at.stop
        return b"".join([*parts, self.header[place:]])


class _Reading(Enum):
    BLOCK = "block"
    OBJECT = "object"
    CHUNK = "chunk"
    ROWS = "rows"


class Places:
    """Follows what comes after the header, block by block: where in the archive is the data of which entry?

    `begin` is the length of the header, `plain` whether the rows of tables are there as the server wrote them. An
    entry's data is a type, the entry's number and chunks up to an empty one; large objects are such lists of chunks
    with an oid before each, up to oid 0.
    """

    def __init__(self, begin: int, *, plain: bool = False) -> None:
        self._found: dict[int, int] = {}
        self._plain = plain
        self._at = begin  # of the next byte to be fed
        self._left = b""
        self._skip = 0
        self._reading = _Reading.BLOCK
        self._objects = False

    @property
    def found(self) -> dict[int, range]:
        """Entry -> the bytes of its data, in the order of the archive."""
        return ranges(self._found.items(), self._at)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the archive. Raises VerificationError when they are no data of an archive."""
        if self._skip >= len(block):
            self._skip -= len(block)
            self._at += len(block)
            return
        data = self._left + block if self._left else block
        begin = self._at - len(self._left)
        self._at += len(block)
        place = self._follow(data, self._skip, begin)
        self._left = data[place:]
        self._skip = max(0, place - len(data))

    def _follow(self, data: bytes, place: int, begin: int) -> int:
        """Read on from `place` as far as `data` goes; the place after the last whole item, possibly past the end."""
        whole = True
        while whole:
            if self._reading is _Reading.ROWS:
                place, whole = self._rows(data, place)
            elif self._reading is _Reading.CHUNK:
                place, whole = self._chunks(data, place)
            elif whole := place + INTEGER.size < len(data):
                place = (
                    self._object(data, place) if self._reading is _Reading.OBJECT else self._block(data, place, begin)
                )
        return place

    def _rows(self, data: bytes, place: int) -> tuple[int, bool]:
        """Each row of a table is a chunk, millions of them. No text of PostgreSQL holds a zero byte and no chunk has a
        length of 0, so the first five in a row are the empty chunk."""
        empty = data.find(EMPTY_CHUNK, place)
        if empty < 0:
            rest = data[max(place, len(data) - len(EMPTY_CHUNK) + 1) :]
            return len(data) - len(rest) + len(rest.rstrip(b"\0")), False
        self._reading = _Reading.BLOCK
        return empty + len(EMPTY_CHUNK), True

    def _chunks(self, data: bytes, place: int) -> tuple[int, bool]:
        size, unpack, last = INTEGER.size, INTEGER.unpack_from, len(data) - INTEGER.size
        length = 1
        while place <= last and (length := unpack(data, place)[0]) > 0:
            place += size + length
        if length < 0:
            raise VerificationError("The dump's data cannot be followed: a length is negative. Use another.")
        if length > 0:
            return place, False
        self._reading = _Reading.OBJECT if self._objects else _Reading.BLOCK
        return place + size, True

    def _object(self, data: bytes, place: int) -> int:
        oid = INTEGER.unpack_from(data, place)[0]
        self._reading = _Reading.CHUNK if oid else _Reading.BLOCK
        return place + INTEGER.size

    def _block(self, data: bytes, place: int, begin: int) -> int:
        kind, number = data[place], INTEGER.unpack_from(data, place + 1)[0]
        if kind not in (DATA, LARGE_OBJECTS):
            raise VerificationError(f"The dump's data cannot be followed: block type {kind}. Use another.")
        self._found[number] = begin + place
        self._objects = kind == LARGE_OBJECTS
        if self._objects:
            self._reading = _Reading.OBJECT
        else:
            self._reading = _Reading.ROWS if self._plain else _Reading.CHUNK
        return place + 1 + INTEGER.size


def ranges(places: Iterable[tuple[int, int]], end: int) -> dict[int, range]:
    """Entry -> the bytes of its data, from where it begins, in an archive of `end` bytes."""
    found = list(places)
    borders = pairwise([*(begin for _, begin in found), end])
    return {number: range(*border) for (number, _), border in zip(found, borders, strict=True)}


def read_contents(data: bytes) -> Contents:
    """Read the header from the first bytes of an archive.

    Raises IncompleteError while `data` is too short, VerificationError when it is no archive of a known version.
    """
    if len(data) < 16:
        raise IncompleteError
    if data[:5] != MAGIC:
        raise VerificationError("The dump is no archive of `pg_dump -Fc`. Only that format can be restored.")
    version = (data[5], data[6])
    if not OLDEST <= version <= NEWEST or data[10] != CUSTOM:
        raise VerificationError(
            f"The archive has version {version[0]}.{version[1]}, format {data[10]}; "
            "known are 1.12 to 1.16 of `pg_dump -Fc`."
        )
    if data[8] != INTEGER.size - 1:
        raise VerificationError(f"The archive has integers of {data[8]} bytes; known are those of four.")
    reader = _Reader(data, offset_size=data[9], place=11)
    compression = reader.byte() if version >= (1, 15) else reader.integer()
    second, minute, hour, day, month, year, _ = (reader.integer() for _ in range(7))  # struct tm, zone unknown
    reader.text()  # name of the database
    server_version, dump_version = reader.text() or "", reader.text() or ""
    entries = tuple(reader.entry(version) for _ in range(reader.integer()))
    return Contents(
        version=version,
        compression=compression,
        server_version=server_version,
        created=datetime(year + 1900, month + 1, day, hour, minute, min(second, 59), tzinfo=UTC),
        dump_version=dump_version,
        entries=entries,
        header=data[: reader.place],
    )


@dataclass
class _Reader:
    data: bytes
    offset_size: int
    place: int

    def take(self, size: int) -> bytes:
        if self.place + size > len(self.data):
            raise IncompleteError
        self.place += size
        return self.data[self.place - size : self.place]

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        sign, value = self.byte(), int.from_bytes(self.take(INTEGER.size - 1), "little")
        return -value if sign else value

    def text(self) -> str | None:
        size = self.integer()
        # surrogateescape: names are in the database's own encoding, and are written back as they were.
        return None if size < 0 else self.take(size).decode("utf-8", "surrogateescape")

    def entry(self, version: tuple[int, int]) -> Entry:
        number = self.integer()
        self.integer()  # has data
        self.text(), self.text()  # oids
        tag, kind = self.text() or "", self.text() or ""
        section = self.integer()
        definition = self.text() or ""
        self.text()  # DROP statement
        copy_begin = self.place
        copy = self.text() or ""
        copy_at = range(copy_begin, self.place)
        namespace = self.text()
        self.text()  # tablespace
        if version >= (1, 14):
            self.text()  # access method
        if version >= (1, 16):
            self.integer()  # relkind
        owner_begin = self.place
        owner = self.text() or ""
        owner_at = range(owner_begin, self.place)
        self.text()
        needs = frozenset(int(number) for number in iter(self.text, None) if number)
        self.take(1 + self.offset_size)  # where its data is in a file; not known where it went into a pipe
        return Entry(number, kind, tag, namespace, section, owner, definition, copy, copy_at, owner_at, needs)


def _written(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return INTEGER.pack(len(raw)) + raw


def readable(schema: str, name: str) -> str:
    """`schema.table` for people and as a key; parts that are not plain lower case are quoted, so keys stay unique."""

    def part(text: str) -> str:
        return text if re.fullmatch(r"[a-z_][a-z0-9_$]*", text) else '"' + text.replace('"', '""') + '"'

    return f"{part(schema)}.{part(name)}"
