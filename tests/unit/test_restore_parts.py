"""What of an archive is restored when, and which indexes need not wait for the rows of others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from actions.adapters.restore_parts import Lane, Parts, frozen_copy, parted
from actions.backup.archive import NO_SECTION, POST_DATA, Contents, Entry

PRE_DATA, ROWS = 2, 3
USERS, ORDERS, PARENT, PRICE = 1, 2, 3, 4
USERS_ROWS, ORDERS_ROWS = 11, 12
PLACES = {USERS_ROWS: range(100, 200), ORDERS_ROWS: range(200, 500)}
TABLES = (
    ("TABLE", USERS, PRE_DATA, ()),
    ("TABLE", ORDERS, PRE_DATA, (PARENT,)),
    ("TABLE", PARENT, PRE_DATA, ()),
    ("FUNCTION", PRICE, PRE_DATA, ()),
    ("TABLE DATA", USERS_ROWS, ROWS, (USERS,)),
    ("TABLE DATA", ORDERS_ROWS, ROWS, (ORDERS,)),
)


def parts(*more: tuple[str, int, int, Iterable[int]]) -> Parts:
    entries = tuple(
        Entry(number, kind, kind.lower(), "public", section, "owner", "", "", range(0), range(0), frozenset(needs))
        for kind, number, section, needs in (*TABLES, *more)
    )
    created = datetime(2026, 11, 23, tzinfo=UTC)
    return parted(Contents((1, 16), 0, "18", "18", created, entries, b""), PLACES, {})[0]


def test_each_share_of_the_rows_has_the_indexes_of_its_tables() -> None:
    found = parts(
        ("CONSTRAINT", 21, POST_DATA, (USERS,)),
        ("INDEX", 22, POST_DATA, (ORDERS,)),
        ("CONSTRAINT", 23, POST_DATA, (ORDERS,)),
    )
    assert found.lanes(PLACES, 2) == [Lane([ORDERS_ROWS], [22, 23]), Lane([USERS_ROWS], [21])]
    assert found.lanes(PLACES, 1) == [Lane([USERS_ROWS, ORDERS_ROWS], [21, 22, 23])]
    assert found.after == []


def test_indexes_of_a_view_that_waits_for_a_primary_key_wait_as_well() -> None:
    found = parts(
        ("CONSTRAINT", 21, POST_DATA, (USERS,)),
        ("MATERIALIZED VIEW", 5, POST_DATA, (USERS, 21)),  # grouped by the key: pg_dump makes it after the key
        ("INDEX", 22, POST_DATA, (5,)),
        ("INDEX", 23, POST_DATA, (USERS,)),
    )
    assert (found.indexes, found.after) == ([21, 23], [5, 22])


def test_materialized_views_are_computed_last() -> None:
    found = parts(("MATERIALIZED VIEW", 5, PRE_DATA, (USERS,)), ("MATERIALIZED VIEW DATA", 41, POST_DATA, (5,)))
    assert (found.views, found.after) == ([41], [])
    assert 5 in found.before


def test_what_needs_more_than_its_own_rows_waits_for_all() -> None:
    waiting: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
        ("INDEX", 31, POST_DATA, (ORDERS, PRICE)),  # of an expression with a function, which may look anywhere
        ("INDEX", 32, POST_DATA, (PARENT,)),
        ("INDEX ATTACH", 33, POST_DATA, (22, 32)),
        ("FK CONSTRAINT", 34, POST_DATA, (ORDERS, USERS)),
        ("FK CONSTRAINT", 35, POST_DATA, (ORDERS,)),
        ("TRIGGER", 36, POST_DATA, (USERS,)),
        ("CHECK CONSTRAINT", 37, POST_DATA, (USERS,)),
        ("COMMENT", 38, NO_SECTION, (USERS,)),
    )
    found = parts(*waiting)
    assert found.indexes == [31, 32, 33]
    assert found.after == [34, 35, 36, 37, 38]
    assert found.views == []
    assert all(lane.indexes == [] for lane in found.lanes(PLACES, 2))


def rows_of(schema: str, table: str, copy: str) -> Entry:
    return Entry(
        ORDERS_ROWS, "TABLE DATA", table, schema, ROWS, "owner", "", copy, range(0), range(0), frozenset((ORDERS,))
    )


@pytest.mark.parametrize(
    ("schema", "table", "copy", "truncated"),
    [
        ("public", "orders", "COPY public.orders (id, note) FROM stdin;\n", '"public"."orders"'),
        ("public", "select", 'COPY public."select" (id) FROM stdin;\n', '"public"."select"'),
        ('a"b', "x y", 'COPY "a""b"."x y"  FROM stdin;\n', '"a""b"."x y"'),
    ],
)
def test_rows_go_frozen_into_a_table_that_is_emptied_with_them(
    schema: str, table: str, copy: str, truncated: str
) -> None:
    frozen = copy.replace(" FROM stdin;", " FROM stdin WITH (FREEZE);")
    assert frozen_copy(rows_of(schema, table, copy)) == f"TRUNCATE ONLY {truncated};\n{frozen}"


@pytest.mark.parametrize(
    "copy",
    [
        "COPY public.orders (id) FROM stdin;\n",  # through the root
        "COPY public.orders_2026 (id) FROM stdin WHERE (id > 3);\n",
        "",
    ],
)
def test_any_other_statement_stays_as_it_is(copy: str) -> None:
    assert frozen_copy(rows_of("public", "orders_2026", copy)) == copy
