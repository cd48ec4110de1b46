"""The demo's production database, its application, the harm done to it, and the proof that it is whole again."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from aiohttp.test_utils import TestClient, TestServer
from psycopg import sql

from actions.adapters.embedded_postgres import EmbeddedPostgres
from bot.demo import dataset, proof
from bot.demo.choices import Damage, Size
from bot.demo.damage import do_damage
from bot.demo.shop import Shop, dsn_of
from bot.demo.webapp import application

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("demo-dataset")]
UNTIL = datetime(2026, 11, 23, 10, 30, tzinfo=UTC)
PASSWORD = "p w'ö\"rd"


@pytest.fixture
def production(pg_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """The tests' server; the demo's database, whose name is fixed, is set aside afterwards."""
    yield pg_server
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(dataset.DATABASE)))


async def filled(server: EmbeddedPostgres) -> str:
    await dataset.make_roles(server.dsn(), password=PASSWORD)
    await dataset.fill(server.dsn(), server.dsn(dataset.DATABASE), size=Size.TINY, until=UNTIL)
    return server.dsn(dataset.DATABASE)


def shop_of(server: EmbeddedPostgres) -> Shop:
    environment = {
        "DATABASE_HOST": f"127.0.0.1:{server.port}",
        "DATABASE_NAME": dataset.DATABASE,
        "DATABASE_USER": dataset.APPLICATION,
        "DATABASE_PASSWORD": PASSWORD,
    }
    return Shop(dsn_of(environment))


async def test_has_what_real_schemas_have(production: EmbeddedPostgres) -> None:
    dsn = await filled(production)
    with psycopg.connect(dsn) as connection:
        kinds = connection.execute(
            "SELECT relkind::text, count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace GROUP BY 1"
        ).fetchall()
        found = {str(kind): int(count) for kind, count in kinds}
        owner = connection.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
        assert owner.fetchone() == (dataset.OWNER,)
        login = connection.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [dataset.OWNER]).fetchone()
        assert login == (False,)
    # Tables, partitioned tables, views, materialized views, sequences.
    assert found["r"] > 15
    assert (found["p"], found["v"], found["m"]) == (1, 1, 1)
    assert found["S"] >= 5


async def test_same_size_and_moment_give_the_same_rows(production: EmbeddedPostgres) -> None:
    dsn = await filled(production)
    first = await proof.prove(dsn, await proof.marks(dsn))
    with psycopg.connect(production.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(dataset.DATABASE)))
    dsn = await filled(production)
    assert await proof.prove(dsn, await proof.marks(dsn)) == first


async def test_application_reads_and_writes_and_leaves_old_rows_alone(production: EmbeddedPostgres) -> None:
    dsn = await filled(production)
    marks = await proof.marks(dsn)
    before = await proof.prove(dsn, marks)
    async with TestClient(TestServer(application(shop_of(production)))) as client:
        assert (await client.get("/healthz")).status == 200
        placed = await client.post("/orders", json={"user": 1, "total_cents": 4200})
        assert (placed.status, await placed.json()) == (201, {"id": marks["orders"] + 1})
        newest = await (await client.get("/orders")).json()
        assert newest[0]["total_cents"] == 4200
        joined = await client.post("/users", json={"email": "new@example.com", "name": "<b>O'Neill</b>"})
        assert joined.status == 201
        assert (await client.post("/users", json={"email": "new@example.com", "name": "again"})).status == 409
        assert (await client.post("/orders", json={"user": "nobody"})).status == 400
        assert (await client.get("/users/999999")).status == 404
        assert "newest order" in await (await client.get("/")).text()
    assert await proof.prove(dsn, marks) == before


@pytest.mark.parametrize("kind", list(Damage))
async def test_damage_is_seen_by_the_application_and_by_the_proof(production: EmbeddedPostgres, kind: Damage) -> None:
    dsn = await filled(production)
    marks = await proof.marks(dsn)
    before = await proof.prove(dsn, marks)
    assert await do_damage(dsn, kind)
    async with TestClient(TestServer(application(shop_of(production)))) as client:
        answer = await client.get("/healthz")
        assert answer.status == 503
        assert (await answer.text()).startswith("superprismora does not work: ")
        assert (await client.get("/")).status == 503
    assert await proof.prove(dsn, marks) != before


async def test_harm_that_cannot_be_done_changes_nothing(production: EmbeddedPostgres) -> None:
    dsn = await filled(production)
    await do_damage(dsn, Damage.DROP_TABLE)
    marks = {"users": 10**9}
    before = await proof.prove(dsn, marks)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await do_damage(dsn, Damage.DROP_TABLE)
    assert await proof.prove(dsn, marks) == before


async def test_application_says_when_its_database_is_away(production: EmbeddedPostgres) -> None:
    await filled(production)
    shop = shop_of(production)
    with psycopg.connect(production.dsn(), autocommit=True) as connection:
        name = sql.Identifier(dataset.DATABASE)
        aside = sql.Identifier(f"aside_{uuid.uuid4().hex[:8]}")
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(name, aside))
        trouble = await shop.trouble()
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(aside, name))
    assert trouble is not None
    assert "does not exist" in trouble
    assert PASSWORD not in trouble
