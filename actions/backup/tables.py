"""Single tables: what one is, how two of them differ, and what it takes to bring one back."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from actions.backup.archive import readable
from actions.errors import UserError
from actions.site import DatabaseRef, Frozen

NAME_LIMIT = 63  # bytes; PostgreSQL cuts off what is longer, without a word that we would hear
_PART = r'(?:"((?:[^"]|"")+)"|([A-Za-z_][\w$]*))'


class TableName(NamedTuple):
    """A table by its schema, both as PostgreSQL stores them."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """`orders`, `sales.orders` or `"Sales"."Orders"`; what is not quoted is taken in lower case, as SQL does.
        Raises UserError."""
        found = re.fullmatch(rf"(?:{_PART}\.)?{_PART}", text.strip())
        if found is None:
            raise UserError(f"`{text[:80]}` is no name of a table. Write it as `schema.table`.")
        quoted_schema, schema, quoted, name = found.groups()
        whole = quoted_schema.replace('""', '"') if quoted_schema else (schema or "public").lower()
        made = cls(whole, quoted.replace('""', '"') if quoted else name.lower())
        if any(len(part.encode()) > NAME_LIMIT for part in made):
            raise UserError(f"`{text[:80]}` is longer than a name may be: PostgreSQL takes {NAME_LIMIT} bytes of it.")
        return made

    def __str__(self) -> str:
        return readable(*self)


class Column(Frozen):
    """A column that holds data of its own: a generated one is computed from them."""

    name: str
    type: str  # with its modifiers
    not_null: bool = False


class ForeignKey(Frozen):
    """A constraint of another table that points here, as `pg_get_constraintdef` writes it."""

    table: TableName
    name: str
    definition: str


class TableFacts(Frozen):
    """A table as it is now."""

    oid: int
    relfilenode: int  # 0 for a partitioned table, which has no file of its own
    owner: str
    rows: int  # exact
    bytes: int = 0  # on disk with its indexes, all partitions of it
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()  # of the primary key
    mark: str = ""  # which plan brought it back
    incoming: tuple[ForeignKey, ...] = ()
    views: tuple[str, ...] = ()  # that read from it
    partitioned: bool = False


class Difference(Frozen):
    """Two tables compared row by row, by their primary key, or as bags of rows where there is none."""

    same: int
    only_source: int
    only_target: int
    different: int = 0  # same key, another content

    @property
    def none(self) -> bool:
        return not (self.only_source or self.only_target or self.different)


class RescueMode(StrEnum):
    """TABLE: the table that is gone, whole, under its own name. COPY: its rows under another name.
    ROWS: the rows that are missing, into the table that is there."""

    TABLE = "table"
    COPY = "copy"
    ROWS = "rows"


class RescueRequest(Frozen):
    """One table or its missing rows, out of `source` into `target`, in one transaction."""

    mode: RescueMode
    source: DatabaseRef
    target: DatabaseRef
    table: TableName
    into: TableName  # TABLE and ROWS: the table itself
    keys: TableName | None = None  # ROWS: a new table that keeps the keys of the rows that were put in
    mark: str
    owner: str  # of the database by the plan file: takes what superusers owned
    incoming: tuple[ForeignKey, ...] = ()  # TABLE: foreign keys of other tables that went with it

    @property
    def made(self) -> TableName:
        """The new table, whose mark tells whose work it is."""
        return self.keys or self.into


class Rescued(Frozen):
    """What a rescue did. Both sides were compared before it was committed, while nobody else could write."""

    rows: int  # brought
    difference: Difference | None = None  # then; None where an earlier attempt had brought them


def not_whole(request: RescueRequest, found: Difference) -> str:
    """Why what was brought is not what the source holds; empty when it is."""
    wrong = found.only_source if request.mode is RescueMode.ROWS else found.only_source + found.different
    if not wrong:
        return ""
    return (
        f"`{request.into}` would not be what `{request.source}` holds: {found.only_source} rows are missing, "
        f"{found.different} differ. Nothing was changed."
    )


RESCUED = "drbot:rescue:"
"""Before the id of the plan: the mark of what a rescue made, at the end of the table's comment."""
