"""Tables in memory: those of the fake PostgreSQL, with rows that are only numbers unless a test gives them content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actions.backup.tables import (
    Column,
    Difference,
    ForeignKey,
    Rescued,
    RescueMode,
    RescueRequest,
    TableFacts,
    TableName,
)
from actions.errors import UserError, VerificationError
from actions.ports import Progress, ProgressReport, Tables
from actions.site import DatabaseRef
from tests.fakes.postgres import MemoryDatabase, MemoryPostgres

ROW = 100  # bytes


@dataclass
class MemoryTable:
    """Rows by primary key."""

    oid: int
    rows: dict[int, str]
    owner: str = "app"
    mark: str = ""
    key: tuple[str, ...] = ("id",)
    incoming: tuple[ForeignKey, ...] = ()
    views: tuple[str, ...] = ()
    brought: dict[int, str] | None = None  # as a rescue has made it
    bytes: int = 0  # 0: by its rows
    put: frozenset[int] = frozenset()  # keys of another table that a rescue has put there
    columns: tuple[Column, ...] = field(default=(Column(name="id", type="integer", not_null=True),))


class MemoryTables(Tables):
    """A database's tables are those of its fingerprint; `give` says what is in one."""

    def __init__(self, postgres: MemoryPostgres) -> None:
        self._postgres = postgres
        self.known: dict[tuple[int, TableName], MemoryTable] = {}

    def give(self, database: DatabaseRef, table: str, rows: dict[int, str], **more: object) -> MemoryTable:
        """From now on the table has these rows."""
        name = TableName.parse(table)
        found = self._of(database)
        made = MemoryTable(oid=_oid(name), rows=dict(rows), **more)  # type: ignore[arg-type]
        self._keep(found, name, made)
        return made

    def write(self, database: DatabaseRef, table: str, rows: dict[int, str]) -> None:
        """As an application does: rows that are there are changed, others put in."""
        name = TableName.parse(table)
        found = self._existing(database, name)
        self._keep(self._of(database), name, replace(found, rows={**found.rows, **rows}))

    def content(self, database: DatabaseRef, table: str) -> dict[int, str]:
        """The rows of a table."""
        return dict(self._existing(database, TableName.parse(table)).rows)

    async def facts(self, database: DatabaseRef, table: TableName) -> TableFacts | None:
        found = self._table(self._of(database), table)
        if found is None:
            return None
        return TableFacts(
            oid=found.oid,
            relfilenode=found.oid,
            owner=found.owner,
            rows=len(found.rows),
            bytes=found.bytes or ROW * len(found.rows),
            columns=found.columns,
            key=found.key,
            mark=found.mark,
            incoming=found.incoming,
            views=found.views,
        )

    async def difference(
        self, source: DatabaseRef, table: TableName, target: DatabaseRef, other: TableName
    ) -> Difference:
        return _difference(self._existing(source, table).rows, self._existing(target, other).rows)

    async def rescue(self, request: RescueRequest, progress: Progress) -> Rescued:
        database, there = self._of(request.target), self._existing(request.source, request.table)
        made = self._table(database, request.made)
        if made is not None:
            if made.mark == request.mark:
                self._keep(database, request.made, replace(made, incoming=request.incoming))
                return Rescued(rows=0)
            raise VerificationError(f"`{request.made}` of `{request.target}` was not made by this plan.")
        progress(ProgressReport(done=len(there.rows), total=len(there.rows), unit="rows", phase="copy"))
        if request.mode is not RescueMode.ROWS or request.keys is None:
            copied = MemoryTable(oid=_oid(request.into), rows=dict(there.rows), owner=there.owner, mark=request.mark)
            copied.brought, copied.incoming = dict(there.rows), request.incoming
            self._keep(database, request.into, copied)
            return Rescued(rows=len(copied.rows), difference=_difference(there.rows, copied.rows))
        table = self._existing(request.target, request.into)
        missing = {key: row for key, row in there.rows.items() if key not in table.rows}
        table.rows |= missing
        self._keep(database, request.into, table)
        kept = MemoryTable(oid=_oid(request.keys), rows=dict.fromkeys(missing, ""), mark=request.mark)
        kept.put = frozenset(missing)
        self._keep(database, request.keys, kept)
        return Rescued(rows=len(missing), difference=_difference(there.rows, table.rows))

    async def withdraw(self, request: RescueRequest) -> None:
        database = self._of(request.target)
        name = request.made
        made = self._table(database, name)
        if made is None or made.mark != request.mark:
            return
        if request.keys is not None:
            table = self._existing(request.target, request.into)
            table.rows = {key: row for key, row in table.rows.items() if key not in made.put}
            self._keep(database, request.into, table)
        elif made.brought is not None and (written := dict(made.rows.items() - made.brought.items())):
            raise UserError(f"{len(written)} row(s) of `{name}` were written since it came back, so it is not dropped.")
        self.known.pop((database.oid, name), None)
        self._counted(database, name, None)

    # ------------------------------------------------------------ parts

    def _of(self, ref: DatabaseRef) -> MemoryDatabase:
        return self._postgres.database_behind(ref)

    def _table(self, database: MemoryDatabase, name: TableName) -> MemoryTable | None:
        count = database.fingerprint.rows.get(str(name))
        if count is None:
            return None
        found = self.known.get((database.oid, name))
        return found or MemoryTable(oid=_oid(name), rows=dict.fromkeys(range(1, count + 1), "row"))

    def _existing(self, ref: DatabaseRef, name: TableName) -> MemoryTable:
        found = self._table(self._of(ref), name)
        if found is None:
            raise UserError(f"`{ref}` has no table `{name}`.")
        return found

    def _keep(self, database: MemoryDatabase, name: TableName, table: MemoryTable) -> None:
        self.known[database.oid, name] = table
        self._counted(database, name, len(table.rows))

    @staticmethod
    def _counted(database: MemoryDatabase, name: TableName, count: int | None) -> None:
        rows = {key: value for key, value in database.fingerprint.rows.items() if key != str(name)}
        if count is not None:
            rows[str(name)] = count
        database.fingerprint = database.fingerprint.model_copy(update={"rows": dict(sorted(rows.items()))})


def _difference(there: Mapping[int, str], here: Mapping[int, str]) -> Difference:
    both = there.keys() & here.keys()
    same = sum(there[key] == here[key] for key in both)
    return Difference(
        same=same,
        only_source=len(there) - len(both),
        only_target=len(here) - len(both),
        different=len(both) - same,
    )


def _oid(name: TableName) -> int:
    return 20000 + sum(str(name).encode())
