"""What comes back with a table on a real server, and what is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.postgres_tables import PostgresTables
from actions.adapters.postgres_tools import PostgresPrograms
from actions.backup.tables import RescueMode, RescueRequest, TableName
from actions.contract import Probe
from actions.errors import UserError, VerificationError
from actions.ports import no_progress
from actions.site import DatabaseRef, Server, Site
from actions.steps.rescue import RescueTable
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import a_world

pytestmark = pytest.mark.integration

MARK = "drbot:rescue:k7m2n3p4q5"
ORDERS = TableName("Sales", 'or"ders')
T = '"Sales"."or""ders"'

SHOP = f"""
    CREATE SCHEMA "Sales" AUTHORIZATION rescue_owner;
    SET ROLE rescue_owner;
    CREATE TABLE "Sales".users (id int PRIMARY KEY);
    INSERT INTO "Sales".users SELECT generate_series(1, 20);
    CREATE TABLE {T} (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id int NOT NULL REFERENCES "Sales".users,
        cents numeric(12, 2) DEFAULT 5 CHECK (cents > 0),
        twice numeric GENERATED ALWAYS AS (cents * 2) STORED,
        at timestamptz NOT NULL DEFAULT now(),
        note text
    );
    CREATE INDEX by_user ON {T} (user_id) WHERE cents > 1;
    COMMENT ON TABLE {T} IS 'every order';
    GRANT SELECT ON {T} TO rescue_reader;
    CREATE TABLE "Sales".audit (what text);
    CREATE FUNCTION "Sales".noted() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO "Sales".audit VALUES (TG_OP); RETURN NEW; END';
    INSERT INTO {T} (user_id, cents, note) SELECT g % 20 + 1, g, 'n' || g FROM generate_series(1, 200) g;
    CREATE TRIGGER noted AFTER INSERT OR DELETE ON {T} FOR EACH ROW EXECUTE FUNCTION "Sales".noted();
    CREATE TABLE "Sales".items (id int PRIMARY KEY, order_id int REFERENCES {T});
    INSERT INTO "Sales".items SELECT g, g FROM generate_series(1, 50) g;
    CREATE VIEW "Sales".big AS SELECT id FROM {T} WHERE cents > 100;
"""


class Shop:
    """Two databases of one past: `there` as it was, `here` where something happens to it."""

    def __init__(self, server: EmbeddedPostgres, name: str, directory: Path) -> None:
        self._server, self.there, self.here = server, f"{name}_there", f"{name}_here"
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.there}".encode())
            with psycopg.connect(server.dsn(self.there), autocommit=True) as made:
                made.execute(SHOP.encode())
            connection.execute(f"CREATE DATABASE {self.here} TEMPLATE {self.there}".encode())
        site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN")})
        secrets = MemorySecrets({"env:DSN": server.dsn()})
        programs = PostgresPrograms(site, secrets, private_directory=directory / "private")
        self.port = PostgresTables(site, secrets, programs)

    def do(self, statement: str, *, there: bool = False) -> list[tuple[object, ...]]:
        name = self.there if there else self.here
        with psycopg.connect(self._server.dsn(name), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def asked(self, mode: RescueMode, **more: object) -> RescueRequest:
        given = {"into": ORDERS, **more}
        return RescueRequest(
            mode=mode,
            source=DatabaseRef("main", self.there),
            target=DatabaseRef("main", self.here),
            table=ORDERS,
            mark=MARK,
            owner="rescue_owner",
            **given,  # type: ignore[arg-type]
        )

    def drop(self) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            for name in (self.here, self.there):
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def described(self, *, there: bool = False) -> list[tuple[object, ...]]:
        """All that belongs to the table but its rows."""
        oid = f"'{T}'::regclass"
        return self.do(
            f"""
            SELECT 'column', attname::text, format_type(atttypid, atttypmod), attnotnull::text, attidentity::text,
                   attgenerated::text, (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
                    WHERE adrelid = attrelid AND adnum = attnum) FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0
            UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), '', '', '', ''
                        FROM pg_index WHERE indrelid = {oid}
            UNION ALL SELECT 'constraint', conname::text, pg_get_constraintdef(oid), '', '', '', ''
                        FROM pg_constraint WHERE conrelid = {oid} OR confrelid = {oid}
            UNION ALL SELECT 'trigger', tgname::text, pg_get_triggerdef(oid), tgenabled::text, '', '', ''
                        FROM pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal
            UNION ALL SELECT 'table', pg_get_userbyid(relowner)::text, relacl::text, '', '', '', ''
                        FROM pg_class WHERE oid = {oid}
            UNION ALL SELECT 'sequence', pg_get_serial_sequence('{T}', 'id'),
                             (SELECT last_value::text FROM pg_sequences WHERE sequencename LIKE 'or%'), '', '', '', ''
            ORDER BY 1, 2, 3
            """,
            there=there,
        )


@pytest.fixture
def shop(pg_server: EmbeddedPostgres, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        for role in ("rescue_owner", "rescue_reader"):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    made = Shop(pg_server, f"rescue_{abs(hash(request.node.name)) % 10**9}", tmp_path)
    yield made
    made.drop()
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        assert connection.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^drbot_(load|give)_'").fetchall() == []
        connection.execute("DROP ROLE rescue_owner, rescue_reader")


async def test_a_dropped_table_comes_back_with_all_that_was_its_own(shop: Shop) -> None:
    there = await shop.port.facts(DatabaseRef("main", shop.there), ORDERS)
    assert there is not None
    assert [key.name for key in there.incoming] == ["items_order_id_fkey"]
    assert there.views == ('"Sales".big',)
    shop.do(f"DROP TABLE {T} CASCADE")
    shop.do('INSERT INTO "Sales".items VALUES (1000, NULL)')

    await shop.port.rescue(shop.asked(RescueMode.TABLE, incoming=there.incoming), no_progress)

    assert shop.described() == shop.described(there=True)
    assert shop.do(f"SELECT * FROM {T} ORDER BY id") == shop.do(f"SELECT * FROM {T} ORDER BY id", there=True)
    assert shop.do(f"SELECT obj_description('{T}'::regclass)") == [(f"every order [{MARK}]",)]
    assert shop.do('SELECT count(*) FROM "Sales".items') == [(51,)]
    assert shop.do('SELECT count(*) FROM "Sales".audit') == [(0,)]
    assert (
        await shop.port.difference(DatabaseRef("main", shop.there), ORDERS, DatabaseRef("main", shop.here), ORDERS)
    ).none

    await shop.port.withdraw(shop.asked(RescueMode.TABLE, incoming=there.incoming))
    assert await shop.port.facts(DatabaseRef("main", shop.here), ORDERS) is None


async def test_rows_that_fit_nothing_any_more_are_named_and_the_table_can_be_taken_back(shop: Shop) -> None:
    there = await shop.port.facts(DatabaseRef("main", shop.there), ORDERS)
    assert there is not None
    shop.do(f"DROP TABLE {T} CASCADE")
    shop.do('INSERT INTO "Sales".items VALUES (1000, 9999)')
    asked = shop.asked(RescueMode.TABLE, incoming=there.incoming)

    with pytest.raises(
        VerificationError, match=r"Rows of `\"Sales\"\.items`|Rows of `.*items` that were written since"
    ):
        await shop.port.rescue(asked, no_progress)

    await shop.port.withdraw(asked)
    assert await shop.port.facts(DatabaseRef("main", shop.here), ORDERS) is None


async def test_a_table_that_does_not_fit_any_more_changes_nothing(shop: Shop) -> None:
    shop.do(f"DROP TABLE {T} CASCADE")
    shop.do('DELETE FROM "Sales".users WHERE id = 3')

    with pytest.raises(VerificationError, match="does not fit into"):
        await shop.port.rescue(shop.asked(RescueMode.TABLE), no_progress)

    assert await shop.port.facts(DatabaseRef("main", shop.here), ORDERS) is None


async def test_rows_that_do_not_come_as_they_were_bring_nothing(shop: Shop) -> None:
    shop.do(f"DROP TABLE {T} CASCADE")
    shop.do(
        "CREATE FUNCTION public.eats() RETURNS event_trigger LANGUAGE plpgsql AS"
        f" $$BEGIN UPDATE {T} SET note = 'other' WHERE id = 7; END$$;"
        " CREATE EVENT TRIGGER eats ON ddl_command_end WHEN tag IN ('CREATE INDEX') EXECUTE FUNCTION public.eats()"
    )

    with pytest.raises(VerificationError, match="the rows that came are not those that were there"):
        await shop.port.rescue(shop.asked(RescueMode.TABLE), no_progress)

    assert await shop.port.facts(DatabaseRef("main", shop.here), ORDERS) is None


async def test_a_table_that_forces_its_policies_on_its_owner_comes_back_with_them(shop: Shop) -> None:
    for there in (True, False):
        shop.do(f"ALTER TABLE {T} ENABLE ROW LEVEL SECURITY; ALTER TABLE {T} FORCE ROW LEVEL SECURITY", there=there)
        shop.do(f"CREATE POLICY cheap ON {T} USING (cents < 10)", there=there)
    shop.do(f"DROP TABLE {T} CASCADE")

    await shop.port.rescue(shop.asked(RescueMode.TABLE), no_progress)

    assert shop.do(f"SELECT relforcerowsecurity FROM pg_class WHERE oid = '{T}'::regclass") == [(True,)]
    assert shop.do(f"SELECT count(*) FROM {T}") == [(200,)]


async def test_a_death_between_the_table_and_the_foreign_keys_of_others_is_made_good(shop: Shop) -> None:
    there = await shop.port.facts(DatabaseRef("main", shop.there), ORDERS)
    assert there is not None
    shop.do(f"DROP TABLE {T} CASCADE")
    await shop.port.rescue(shop.asked(RescueMode.TABLE), no_progress)
    step = RescueTable(job="rescue", asked=shop.asked(RescueMode.TABLE, incoming=there.incoming), rows=200)
    ports = replace(a_world(), tables=shop.port)  # type: ignore[arg-type]

    assert await step.effect(ports, None) is Probe.TODO
    with pytest.raises(VerificationError, match="came back without `items_order_id_fkey of"):
        await step.verify(ports)

    await shop.port.rescue(step.asked, no_progress)
    assert await step.effect(ports, None) is Probe.DONE
    await step.verify(ports)


async def test_what_users_write_before_it_is_verified_is_no_fault(shop: Shop) -> None:
    shop.do(f"DROP TABLE {T} CASCADE")
    step = RescueTable(job="rescue", asked=shop.asked(RescueMode.TABLE), rows=200)
    ports = replace(a_world(), tables=shop.port)  # type: ignore[arg-type]
    await shop.port.rescue(step.asked, no_progress)
    shop.do(f"UPDATE {T} SET note = 'by a user' WHERE id = 1; INSERT INTO {T} (user_id) SELECT generate_series(1, 5)")

    await step.verify(ports)
    with pytest.raises(UserError, match=r"6 row\(s\)"):
        await step.undo(ports)
    assert shop.do(f"SELECT count(*) FROM {T}") == [(205,)]


async def test_missing_rows_come_in_without_waking_triggers(shop: Shop) -> None:
    shop.do(f"ALTER TABLE {T} DISABLE TRIGGER noted")
    shop.do(f'DELETE FROM "Sales".items; DELETE FROM {T} WHERE id BETWEEN 10 AND 40')
    shop.do(f"ALTER TABLE {T} ENABLE ALWAYS TRIGGER noted")
    shop.do(f"UPDATE {T} SET note = 'changed' WHERE id = 50")
    asked = shop.asked(RescueMode.ROWS, keys=TableName("Sales", "kept"))

    assert (await shop.port.rescue(asked, no_progress)).rows == 31

    assert shop.do('SELECT count(*) FROM "Sales".audit') == [(0,)]
    assert shop.do("SELECT tgenabled FROM pg_trigger WHERE tgname = 'noted'") == [("A",)]
    assert shop.do(f"SELECT count(*), min(twice) FROM {T}") == [(200, 2)]
    assert shop.do(f"SELECT note FROM {T} WHERE id = 50") == [("changed",)]
    assert shop.do(f"SELECT note, at FROM {T} WHERE id = 20") == shop.do(
        f"SELECT note, at FROM {T} WHERE id = 20", there=True
    )

    shop.do(f"UPDATE {T} SET note = 'touched since' WHERE id = 11")
    await shop.port.withdraw(asked)
    assert shop.do(f"SELECT id FROM {T} WHERE id BETWEEN 10 AND 40") == [(11,)]


async def test_triggers_of_single_partitions_are_not_woken_and_stand_as_before(shop: Shop) -> None:
    made = """
        CREATE TABLE public.days (id int, day int, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
        CREATE TABLE public.mondays PARTITION OF public.days FOR VALUES IN (1);
        CREATE TABLE public.others PARTITION OF public.days DEFAULT PARTITION BY RANGE (id);
        CREATE TABLE public.many PARTITION OF public.others DEFAULT;
        INSERT INTO public.days SELECT g, g % 3 FROM generate_series(1, 30) g;
        CREATE TRIGGER whole AFTER INSERT OR DELETE ON public.days
            FOR EACH ROW EXECUTE FUNCTION "Sales".noted();
        CREATE TRIGGER own AFTER INSERT OR DELETE ON public.mondays
            FOR EACH ROW EXECUTE FUNCTION "Sales".noted();
        CREATE TRIGGER deep AFTER INSERT OR DELETE ON public.many
            FOR EACH ROW EXECUTE FUNCTION "Sales".noted();
        ALTER TABLE public.mondays ENABLE ALWAYS TRIGGER own;
        ALTER TABLE public.mondays DISABLE TRIGGER whole;
    """
    for there in (True, False):
        shop.do(made, there=there)
    states = (
        "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger WHERE tgname IN ('whole', 'own', 'deep')"
    )
    before = shop.do(f"{states} ORDER BY 1, 2")
    shop.do("DELETE FROM public.days")
    shop.do('TRUNCATE "Sales".audit')
    days = TableName("public", "days")
    asked = shop.asked(RescueMode.ROWS, into=days, keys=TableName("public", "kept"))
    asked = asked.model_copy(update={"table": days})

    assert (await shop.port.rescue(asked, no_progress)).rows == 30
    assert shop.do('SELECT count(*) FROM "Sales".audit') == [(0,)]
    assert shop.do(f"{states} ORDER BY 1, 2") == before

    await shop.port.withdraw(asked)
    assert shop.do('SELECT count(*) FROM "Sales".audit') == [(0,)]
    assert shop.do(f"{states} ORDER BY 1, 2") == before


async def test_a_copy_has_the_rows_and_the_key_for_its_owner_alone(shop: Shop) -> None:
    copy = TableName("Sales", "copy")
    await shop.port.rescue(shop.asked(RescueMode.COPY, into=copy), no_progress)

    facts = await shop.port.facts(DatabaseRef("main", shop.here), copy)
    assert facts is not None
    assert (facts.rows, facts.key, facts.owner) == (200, ("id",), "rescue_owner")
    assert [column.name for column in facts.columns] == ["id", "user_id", "cents", "at", "note"]


async def test_a_table_of_a_superuser_comes_back(shop: Shop) -> None:
    for there in (True, False):
        shop.do(f"ALTER TABLE {T} OWNER TO postgres", there=there)
    shop.do(f"DROP TABLE {T} CASCADE")

    await shop.port.rescue(shop.asked(RescueMode.TABLE), no_progress)

    facts = await shop.port.facts(DatabaseRef("main", shop.here), ORDERS)
    assert facts is not None
    assert (facts.rows, facts.owner) == (200, "postgres")


async def test_tables_without_a_key_are_compared_as_bags(shop: Shop) -> None:
    for there, rows in ((True, "('a'), ('a'), ('b')"), (False, "('a'), ('b'), ('b'), ('c')")):
        shop.do("CREATE TABLE public.bag (x text)", there=there)
        shop.do(f"INSERT INTO public.bag VALUES {rows}", there=there)
    bag = TableName("public", "bag")

    found = await shop.port.difference(DatabaseRef("main", shop.there), bag, DatabaseRef("main", shop.here), bag)

    assert (found.same, found.only_source, found.only_target, found.different) == (2, 1, 2, 0)


async def test_a_type_that_is_gone_is_told(shop: Shop) -> None:
    shop.do("CREATE TYPE public.mood AS ENUM ('good')", there=True)
    shop.do(f"ALTER TABLE {T} ADD COLUMN mood public.mood", there=True)

    with pytest.raises(UserError, match=r"type .* does not exist"):
        await shop.port.rescue(shop.asked(RescueMode.COPY, into=TableName("Sales", "copy")), no_progress)


async def test_rows_that_come_back_after_a_truncate_leave_the_sequence_behind_them(shop: Shop) -> None:
    shop.do('DELETE FROM "Sales".items; ALTER TABLE "Sales".items DROP CONSTRAINT items_order_id_fkey')
    shop.do(f"TRUNCATE {T} RESTART IDENTITY")
    asked = shop.asked(RescueMode.ROWS, keys=TableName("Sales", "kept"))

    assert (await shop.port.rescue(asked, no_progress)).rows == 200

    assert shop.do(f"INSERT INTO {T} (user_id) VALUES (1) RETURNING id") == [(201,)]


async def test_rows_that_others_hang_on_to_are_not_taken_back(shop: Shop) -> None:
    shop.do(
        f'ALTER TABLE "Sales".items DROP CONSTRAINT items_order_id_fkey,'
        f" ADD CONSTRAINT hung FOREIGN KEY (order_id) REFERENCES {T} ON DELETE CASCADE"
    )
    shop.do(f"DELETE FROM {T} WHERE id BETWEEN 10 AND 40")
    asked = shop.asked(RescueMode.ROWS, keys=TableName("Sales", "kept"))
    await shop.port.rescue(asked, no_progress)
    shop.do('INSERT INTO "Sales".items VALUES (1000, 10), (1001, 11)')

    with pytest.raises(UserError, match=r"2 row\(s\) of .*items"):
        await shop.port.withdraw(asked)
    assert shop.do('SELECT count(*) FROM "Sales".items WHERE id >= 1000') == [(2,)]

    shop.do('DELETE FROM "Sales".items WHERE id >= 1000')
    await shop.port.withdraw(asked)
    assert shop.do(f"SELECT count(*) FROM {T}") == [(169,)]


async def test_a_copy_of_a_table_whose_key_is_computed_has_its_rows(shop: Shop) -> None:
    shop.do(
        "CREATE TABLE public.k (a int, b int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY); INSERT INTO public.k"
        " SELECT generate_series(1, 5)",
        there=True,
    )
    copy = TableName("public", "copy")
    asked = shop.asked(RescueMode.COPY, into=copy).model_copy(update={"table": TableName("public", "k")})

    assert (await shop.port.rescue(asked, no_progress)).rows == 5


def test_a_name_that_postgresql_would_cut_off_is_refused() -> None:
    assert TableName.parse('"' + "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 31 + '"')
    with pytest.raises(UserError, match="longer than a name may be"):
        TableName.parse('"' + "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 32 + '"')
