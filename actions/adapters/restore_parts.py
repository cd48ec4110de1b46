"""What of an archive is restored when: schemas, tables, rows, then what looks at rows.

Rows come before indexes, constraints and triggers: with several jobs `pg_restore` would make a foreign key or trigger
of a partitioned table while its partitions are still empty, and every row would pay for it. Only an index that looks at
nothing but rows which are there already is made while others are still on their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actions.backup.archive import NO_SECTION, POST_DATA, Contents, Entry

# Only a superuser may make these; a restore has none, so they are left out and told.
NEED_SUPERUSER = frozenset({"EVENT TRIGGER", "SUBSCRIPTION", "FOREIGN DATA WRAPPER"})
INDEXES = frozenset({"INDEX", "CONSTRAINT", "INDEX ATTACH"})  # CONSTRAINT: keys and exclusions, no foreign keys

FROM_STDIN, FROM_STDIN_FROZEN = " FROM stdin;\n", " FROM stdin WITH (FREEZE);\n"
REFRESHED = "MATERIALIZED VIEW DATA"


@dataclass(frozen=True)
class Lane:
    """One job's share of the rows, and the indexes that stand on their tables alone; numbers of entries."""

    rows: Sequence[int]
    indexes: Sequence[int]


@dataclass(frozen=True)
class Parts:
    """Numbers of an archive's entries, by when they are restored, each list in the archive's order."""

    schemas: list[int] = field(default_factory=list)  # before the owners get rights on the schemas
    before: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # those with bytes of their own
    indexes: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # foreign keys and triggers first, rights last
    views: list[int] = field(default_factory=list)  # materialized views, computed from all there is
    tables: dict[int, int] = field(default_factory=dict)  # the table of the rows
    alone: dict[int, int] = field(default_factory=dict)  # indexes that need one table and nothing else

    def lanes(self, places: Mapping[int, range], jobs: int) -> Sequence[Lane]:
        """At most so many shares of the rows, of about equal bytes, each with its indexes."""
        found: list[Lane] = []
        for share in shares(places, self.rows, jobs):
            held = {self.tables[number] for number in share if number in self.tables}
            found.append(Lane(share, [number for number, table in self.alone.items() if table in held]))
        return found


def parted(contents: Contents, places: Mapping[int, range], owners: Mapping[str, str]) -> tuple[Parts, list[str]]:
    """What is restored when, and notes of what is left out. `places` are the bytes of entries that have any, `owners`
    who owns what of whose afterwards."""
    parts, notes = Parts(), list[str]()
    tables = {entry.id for entry in contents.entries if entry.kind == "TABLE"}
    late: set[int] = set()  # a view that needs a primary key comes after it; its indexes come after the view
    for entry in contents.entries:
        if (note := _left_out(entry, owners)) is not None:
            notes += [note] if note else []
        elif entry.kind == "SCHEMA":
            parts.schemas.append(entry.id)
        elif entry.id in places:
            parts.rows.append(entry.id)
            parts.tables.update(_standing_on(entry, tables))
        elif entry.kind == REFRESHED:
            parts.views.append(entry.id)
        elif entry.kind in INDEXES and late.isdisjoint(entry.needs):
            parts.indexes.append(entry.id)
            # One that needs a function besides waits: nobody knows at which rows that looks.
            if len(entry.needs) == 1:
                parts.alone.update(_standing_on(entry, tables))
        elif entry.section in (POST_DATA, NO_SECTION):
            parts.after.append(entry.id)
            late.add(entry.id)
        else:
            parts.before.append(entry.id)
    return parts, notes


def frozen_copy(entry: Entry) -> str:
    """The statement that takes the rows of a table which this restore has made, as rows that everybody sees: no later
    reader has to find that out and to write their pages once more. PostgreSQL does so only where the table was emptied
    in the same transaction, which one message of two statements is (its documentation, COPY, FREEZE).

    As it was where it names another table: rows of partitions may be loaded through their root, which takes none so.
    """
    names = [(name, '"' + name.replace('"', '""') + '"') for name in (entry.namespace or "", entry.tag)]
    begins = tuple(f"COPY {schema}.{table} " for schema in names[0] for table in names[1])
    if not entry.copy.startswith(begins) or not entry.copy.endswith(FROM_STDIN):
        return entry.copy
    return f"TRUNCATE ONLY {names[0][1]}.{names[1][1]};\n{entry.copy.removesuffix(FROM_STDIN)}{FROM_STDIN_FROZEN}"


def _standing_on(entry: Entry, tables: set[int]) -> dict[int, int]:
    return {number: table for number in (entry.id,) for table in entry.needs & tables}


def _left_out(entry: Entry, owners: Mapping[str, str]) -> str | None:
    """The note of what is not restored from the archive, empty where people need none; None for what is."""
    if entry.kind == "EXTENSION" or (entry.kind == "COMMENT" and entry.tag.startswith("EXTENSION ")):
        return ""
    if entry.kind in NEED_SUPERUSER:
        return f"{entry.kind.lower()} `{entry.tag}` was left out: only a superuser may make it"
    if entry.kind == "DEFAULT ACL" and owners.get(entry.owner, entry.owner) != entry.owner:
        return f"default privileges of superuser `{entry.owner}` were left out"
    return None


def shares(places: Mapping[int, range], entries: Sequence[int], jobs: int) -> Sequence[Sequence[int]]:
    """The entries in at most so many shares of about equal bytes, each in the order of the archive."""
    found: list[list[int]] = [[] for _ in range(jobs)]
    sizes = [0] * jobs
    for number in sorted(entries, key=lambda each: len(places[each]), reverse=True):
        smallest = sizes.index(min(sizes))
        found[smallest].append(number)
        sizes[smallest] += len(places[number])
    return [sorted(share, key=lambda each: places[each].start) for share in found if share]
