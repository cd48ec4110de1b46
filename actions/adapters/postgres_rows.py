"""Two tables on two servers compared row by row, without moving the rows that are equal.

The server hashes every row and adds the hashes up in a thousand parts by key; only parts that differ are fetched, as
pairs of hashes. 64 bits each: among a million rows that differ, two look alike once in some 40 million comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection
from actions.backup.tables import Difference, TableName

PARTS = 1024
AT_ONCE = 1_000_000  # rows whose hashes are held in memory


@dataclass(frozen=True)
class Side:
    """One of the two tables, in the same columns. Both connections write values as text in the same form."""

    connection: AsyncConnection
    table: TableName
    key: Sequence[str]
    columns: Sequence[str]

    @property
    def all_rows(self) -> sql.Composed:
        columns = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        return sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(*self.table))

    def rows_of(self, parts: Sequence[int]) -> sql.Composed:
        """The rows of these parts."""
        return sql.SQL("{} WHERE {} = ANY({})").format(self.all_rows, self._part, sql.Literal(list(parts)))

    @property
    def _part(self) -> sql.Composed:
        return sql.SQL("({} & {})::int").format(_hash(self.key), sql.Literal(PARTS - 1))

    @property
    def total(self) -> sql.Composed:
        """One text: the number of rows and the sum of their hashes."""
        return sql.SQL("SELECT count(*) || ' rows, ' || coalesce(sum({}), 0) FROM {}").format(
            _hash(self.columns), sql.Identifier(*self.table)
        )

    async def sums(self) -> Mapping[int, tuple[int, int]]:
        """Part -> number of rows and sum of their hashes."""
        query = sql.SQL("SELECT {}, count(*), sum({}) FROM {} GROUP BY 1").format(
            self._part, _hash(self.columns), sql.Identifier(*self.table)
        )
        rows = await (await self.connection.execute(query)).fetchall()
        return {part: (count, int(total)) for part, count, total in rows}

    async def hashes(self, parts: Sequence[int]) -> dict[tuple[int, int], int]:
        """Hash of the key and of the row -> how many there are."""
        query = sql.SQL("SELECT {}, {}, count(*) FROM {} WHERE {} = ANY({}) GROUP BY 1, 2").format(
            _hash(self.key), _hash(self.columns), sql.Identifier(*self.table), self._part, sql.Literal(list(parts))
        )
        rows = await (await self.connection.execute(query)).fetchall()
        return {(key, row): count for key, row, count in rows}


async def differing(source: Side, target: Side) -> list[int]:
    """The parts that are not equal."""
    there, here = await source.sums(), await target.sums()
    return sorted(part for part in there.keys() | here.keys() if there.get(part) != here.get(part))


async def compared(source: Side, target: Side) -> Difference:
    """Count what is equal, what is on one side alone, and what has the same key but another content."""
    there, here = await source.sums(), await target.sums()
    same = sum(there[part][0] for part in there.keys() & here.keys() if there[part] == here[part])
    only_source = sum(there[part][0] for part in there.keys() - here.keys())
    only_target = sum(here[part][0] for part in here.keys() - there.keys())
    different = 0
    unequal = {part: there[part][0] + here[part][0] for part in there.keys() & here.keys() if there[part] != here[part]}
    for parts in _together(unequal):
        first, second = await source.hashes(parts), await target.hashes(parts)
        both = {pair: min(count, second.get(pair, 0)) for pair, count in first.items()}
        same += sum(both.values())
        left, right = _remaining(first, both), _remaining(second, both)
        changed = {key: min(left[key], right[key]) for key in left.keys() & right.keys()}
        different += sum(changed.values())
        only_source += sum(left.values()) - sum(changed.values())
        only_target += sum(right.values()) - sum(changed.values())
    return Difference(same=same, only_source=only_source, only_target=only_target, different=different)


def _remaining(found: Mapping[tuple[int, int], int], both: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """Hash of the key -> rows that have no equal on the other side."""
    left: dict[int, int] = {}
    for (key, row), count in found.items():
        if rest := count - both.get((key, row), 0):
            left[key] = left.get(key, 0) + rest
    return left


def _together(parts: Mapping[int, int]) -> Iterator[list[int]]:
    """The parts in groups of as many rows as fit into memory."""
    group: list[int] = []
    rows = 0
    for part, count in parts.items():
        if group and rows + count > AT_ONCE:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += count
    if group:
        yield group


def _hash(columns: Sequence[str]) -> sql.Composed:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("hashtextextended(ROW({})::text, 0)").format(names)
