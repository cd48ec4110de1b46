"""The finder on the WAL of a real server: exact to the transaction."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.pg_waldump import PgWaldump
from actions.backup.finder import files_of, find, find_points
from actions.backup.physical import Change, FindRequest, Lsn, Moment, Place, PlaceRequest, PointRequest, RecoveryTarget
from actions.backup.places import find_places
from actions.errors import UserError, VerificationError
from tests.fixtures.apart import run_apart

pytestmark = pytest.mark.integration

ALL = (Change.DROP, Change.TRUNCATE, Change.DELETE, Change.UPDATE)


@pytest.fixture(scope="module")
def server(run_directory: Path) -> Iterator[EmbeddedPostgres]:
    """With the WAL level that archiving needs and no more: no logical records help."""
    made = EmbeddedPostgres(
        run_directory / f"finder-{os.environ.get('PYTEST_XDIST_WORKER', 'only')}",
        durable=False,
        settings={
            "wal_level": "replica",
            "autovacuum": "off",
            "wal_keep_size": "1GB",
            "max_prepared_transactions": "5",
        },
    )
    run_apart(made.start())
    yield made
    run_apart(made.stop())


class Scene:
    """A table in a database of its own, the WAL from here on, and what was done to the table."""

    def __init__(self, server: EmbeddedPostgres, name: str, folder: Path) -> None:
        self.server, self.name, self._folder = server, name, folder
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        self.connection = psycopg.connect(server.dsn(name), autocommit=True)
        self.do(
            "CREATE TABLE orders (id int PRIMARY KEY, body text)",
            "INSERT INTO orders SELECT g, repeat('x', 100) FROM generate_series(1, 50) g",
            "CREATE TABLE others (id int PRIMARY KEY)",
        )
        self.files = {"public.orders": self.scalar("SELECT pg_relation_filenode('orders')")}
        self.begin = str(self.scalar("SELECT pg_walfile_name(pg_current_wal_lsn())"))

    def scalar(self, statement: str) -> int:
        row = self.connection.execute(statement.encode()).fetchone()
        assert row is not None
        value: int = row[0]
        return value

    def do(self, *statements: str) -> int:
        """In one transaction; its number."""
        with self.connection.transaction():
            for statement in statements:
                self.connection.execute(statement.encode())
            return int(self.scalar("SELECT pg_current_xact_id()::text"))

    def found(self, *changes: Change, table: str = "orders") -> list[Moment]:
        """What the finder says of everything since."""
        self.do("INSERT INTO others SELECT coalesce(max(id), 0) + 1 FROM others")
        last = str(self.scalar("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        self.connection.execute("SELECT pg_switch_wal()")
        for path in sorted((self.server.data / "pg_wal").iterdir()):
            if len(path.name) == 24 and self.begin <= path.name <= last:
                shutil.copy(path, self._folder / path.name)
        return self.look(*changes, table=table)

    def look(self, *changes: Change, table: str = "orders") -> list[Moment]:
        """In the WAL as it lies in the folder."""
        request = FindRequest(server="main", database=self.name, table=table, changes=changes or ALL)
        oid = self.scalar("SELECT oid FROM pg_database WHERE datname = current_database()")
        return find(PgWaldump(), self._folder, request, database_oid=oid, files=files_of(table, [self.files]))


@pytest.fixture
def scene(server: EmbeddedPostgres, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    name = f"finder_{abs(hash(request.node.name)) % 10**9}"
    made = Scene(server, name, tmp_path)
    yield made
    made.connection.close()


def test_a_drop_is_found_with_what_was_committed_around_it(scene: Scene) -> None:
    before = scene.do("INSERT INTO others VALUES (100)")
    dropped = scene.do("DROP TABLE orders")
    after = [scene.do(f"INSERT INTO others VALUES ({number})") for number in (101, 102)]

    found = scene.found()

    assert [(moment.change, moment.xid) for moment in found] == [(Change.DROP, dropped)]
    assert (found[0].before_xid, found[0].lost) == (before, len(after) + 1)
    assert found[0].before_at is not None
    assert found[0].after_at is not None
    assert found[0].before_at <= found[0].committed_at <= found[0].after_at
    assert not found[0].target.inclusive


def test_deletes_and_updates_are_counted_by_transaction(scene: Scene) -> None:
    first = scene.do("DELETE FROM orders WHERE id <= 5")
    updated = scene.do("UPDATE orders SET body = 'y' WHERE id BETWEEN 10 AND 12")
    scene.do("DELETE FROM others")
    second = scene.do("DELETE FROM orders WHERE id > 40", "INSERT INTO orders VALUES (1000, 'new')")

    found = scene.found()

    assert [(moment.change, moment.xid, moment.rows) for moment in found] == [
        (Change.DELETE, second, 10),
        (Change.UPDATE, updated, 3),
        (Change.DELETE, first, 5),
    ]
    assert [Lsn.parse(moment.commit_lsn) for moment in found] == sorted(
        (Lsn.parse(moment.commit_lsn) for moment in found), reverse=True
    )


def test_what_was_rolled_back_is_no_harm_and_subtransactions_count(scene: Scene) -> None:
    scene.connection.execute("BEGIN")
    scene.connection.execute("DELETE FROM orders")
    scene.connection.execute("ROLLBACK")
    kept = scene.do(
        "DELETE FROM orders WHERE id = 1",
        "SAVEPOINT a",
        "DELETE FROM orders WHERE id = 2",
        "RELEASE SAVEPOINT a",
        "SAVEPOINT b",
        "DELETE FROM orders WHERE id > 2",
        "ROLLBACK TO SAVEPOINT b",
    )

    assert [(moment.xid, moment.rows) for moment in scene.found(Change.DELETE)] == [(kept, 2)]


def test_a_truncated_table_is_followed_to_its_new_file(scene: Scene) -> None:
    truncated = scene.do("TRUNCATE others, orders")
    scene.do("INSERT INTO orders VALUES (1, 'a'), (2, 'b')")
    deleted = scene.do("DELETE FROM orders WHERE id = 2")
    dropped = scene.do("DROP TABLE orders")

    assert [(moment.change, moment.xid) for moment in scene.found()] == [
        (Change.DROP, dropped),
        (Change.DELETE, deleted),
        (Change.TRUNCATE, truncated),
    ]


@pytest.mark.parametrize(
    "rewrite",
    ["VACUUM FULL orders", "ALTER TABLE orders ALTER COLUMN id TYPE bigint", "CLUSTER orders USING orders_pkey"],
)
def test_a_rewrite_harms_nobody_and_is_followed(scene: Scene, rewrite: str) -> None:
    scene.connection.execute(rewrite.encode())
    deleted = scene.do("DELETE FROM orders WHERE id = 7")

    found = scene.found(Change.DROP, Change.DELETE, Change.TRUNCATE)
    assert (Change.DELETE, deleted, 1) in [(moment.change, moment.xid, moment.rows) for moment in found]
    if not rewrite.startswith("ALTER"):  # it drops the old index as well, which looks like a harm: told, never hidden
        assert len(found) == 1


def test_a_drop_is_not_hidden_by_what_its_transaction_makes(scene: Scene) -> None:
    dropped = scene.do(
        "DROP TABLE orders", "CREATE TABLE orders AS SELECT g AS id, '' AS body FROM generate_series(1, 9) g"
    )

    assert [(moment.change, moment.xid) for moment in scene.found()] == [(Change.DROP, dropped)]


def test_a_prepared_transaction_counts_when_it_is_committed(scene: Scene) -> None:
    scene.connection.execute("BEGIN")
    scene.connection.execute("DELETE FROM orders WHERE id < 4")
    prepared = scene.scalar("SELECT pg_current_xact_id()::text::int")
    scene.connection.execute("PREPARE TRANSACTION 'finder'")
    scene.do("INSERT INTO others VALUES (1)")
    scene.connection.execute("COMMIT PREPARED 'finder'")

    assert [(moment.xid, moment.rows) for moment in scene.found(Change.DELETE)] == [(prepared, 3)]


def test_segments_that_cannot_be_read_are_told(scene: Scene, tmp_path: Path) -> None:
    scene.do("INSERT INTO others VALUES (1)")
    scene.connection.execute("SELECT pg_switch_wal()")
    scene.do("DELETE FROM orders")
    scene.found()
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / names[0]).write_bytes(bytes(16 * 1024 * 1024))

    with pytest.raises(VerificationError, match="cannot be read"):
        scene.look()


def test_a_table_that_nobody_knows_is_told_with_those_alike(scene: Scene) -> None:
    with pytest.raises(UserError, match=r"No base backup knows a table `public.order`. There are: `public.orders`"):
        scene.found(table="order")


def test_a_named_restore_point_is_found_by_its_whole_name(scene: Scene, tmp_path: Path) -> None:
    scene.do("INSERT INTO others VALUES (1)")
    places = [
        str(scene.scalar(f"SELECT pg_create_restore_point('{name}')"))
        for name in ("before the move", "before the move 2", "before the move")
    ]
    scene.found()

    found = find_points(PgWaldump(), tmp_path, PointRequest(server="main", point="before the move"))

    # The function tells the end of the record.
    assert Lsn.parse(places[1]) <= Lsn.parse(found[0].lsn) < Lsn.parse(places[2])
    assert Lsn.parse(found[1].lsn) < Lsn.parse(places[0])
    assert len({(point.before_at, point.after_at) for point in found}) == 1
    assert found[0].before_at is not None
    assert found[0].after_at is not None
    assert found[0].before_at < found[0].after_at
    assert find_points(PgWaldump(), tmp_path, PointRequest(server="main", point="before the mov")) == []


def test_places_of_a_time_a_transaction_and_a_name_are_exact(scene: Scene, tmp_path: Path) -> None:
    first = scene.do("INSERT INTO others VALUES (1)")
    scene.scalar("SELECT pg_create_restore_point('here')")
    scene.connection.execute("BEGIN")
    scene.connection.execute("INSERT INTO others VALUES (2)")
    aborted = scene.scalar("SELECT pg_current_xact_id()::text::int8")
    scene.connection.execute("ROLLBACK")
    second, third = scene.do("INSERT INTO others VALUES (3)"), scene.do("INSERT INTO others VALUES (4)")
    scene.found()

    def place(**target: object) -> Place:
        request = PlaceRequest(server="main", target=RecoveryTarget.model_validate(target))
        (found,) = find_places(PgWaldump(), tmp_path, request)
        return found

    def told(found: Place) -> tuple[int | None, int | None, int]:
        return found.before_xid, found.after_xid, found.lost

    whole = place(xid=first)
    assert told(whole) == (first, second, 3)  # `found` commits one as well
    assert told(place(name="here")) == told(place(xid=aborted)) == told(whole)
    assert told(place(xid=second, inclusive=False)) == told(whole)
    assert told(place(time=whole.before_at)) == told(whole)
    assert told(place(lsn=whole.lsn)) == told(whole)
    assert told(place(lsn=whole.lsn, inclusive=False))[1:] == (first, 4)
    assert told(place(time=place(xid=third).before_at))[::2] == (third, 1)
    end = place(lsn="F/0")
    assert (end.after_xid, end.lost) == (None, 0)


def test_a_folder_without_wal_is_told(tmp_path: Path) -> None:
    request = FindRequest(server="main", database="x", table="orders")
    with pytest.raises(UserError, match="No WAL of `main` is archived"):
        find(PgWaldump(), tmp_path, request, database_oid=1, files=[2])


def test_the_target_is_before_the_table_was_locked(scene: Scene) -> None:
    """Paused between lock and commit, the server would keep the table locked for everybody."""
    others = psycopg.connect(scene.server.dsn(scene.name), autocommit=True)
    before = scene.do("INSERT INTO others VALUES (1)")
    scene.connection.execute("BEGIN")
    scene.connection.execute("DROP TABLE orders")
    for number in (2, 3):
        others.execute(f"INSERT INTO others VALUES ({number})".encode())
    scene.connection.execute("COMMIT")
    others.close()

    (found,) = scene.found()

    assert found.lock_lsn is not None
    assert Lsn.parse(found.lock_lsn) < Lsn.parse(found.commit_lsn)
    assert (found.target.lsn, found.target.inclusive, found.target.xid) == (found.lock_lsn, False, None)
    assert (found.before_xid, found.lost) == (before, 3)
