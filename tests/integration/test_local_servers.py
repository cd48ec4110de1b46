"""The servers that the product, the demo and the tests start: real programs, on loopback, gone when their owner is."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import psutil
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from actions.adapters.embedded_postgres import EmbeddedPostgres, Listen, Start
from actions.adapters.postgres_installation import installation
from actions.adapters.secrets import SecretReferences
from actions.adapters.witness_s3 import S3Witness
from actions.errors import UserError
from actions.site import Bucket
from bot.demo.seaweedfs import WITNESS_BUCKET, SeaweedFs
from tests.fixtures.postgres import Database
from tests.fixtures.shared_s3 import S3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a normal user runs PostgreSQL as itself")
ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], *, within: float = 10.0) -> bool:
    limit = time.monotonic() + within
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


async def one(dsn: str, query: str) -> object:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(query)
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def owned_by_another_process(directory: Path, *, detached: bool) -> "subprocess.Popen[str]":
    """A Python that starts the server and then waits to be killed."""
    script = (
        "import asyncio, sys, time, pathlib\n"
        "from actions.adapters.embedded_postgres import EmbeddedPostgres\n"
        f"server = EmbeddedPostgres(pathlib.Path(sys.argv[1]), durable=False, detached={detached})\n"
        "asyncio.run(server.start())\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


async def test_each_test_has_an_empty_database_of_its_own(pg_database: Database) -> None:
    assert await one(pg_database.dsn, "SELECT current_database()") == pg_database.name
    assert await one(pg_database.dsn, "SELECT count(*) FROM pg_stat_user_tables") == 0


async def test_server_is_ours_alone_and_checks_its_pages(pg_server: EmbeddedPostgres) -> None:
    settings = {
        name: await one(pg_server.dsn(), f"SHOW {name}")
        for name in ("data_checksums", "server_encoding", "listen_addresses", "password_encryption")
    }
    assert settings == {
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "127.0.0.1",
        "password_encryption": "scram-sha-256",
    }
    assert (pg_server.directory / "superuser.password").stat().st_mode & 0o777 == 0o600
    assert pg_server.passfile.stat().st_mode & 0o777 == 0o600
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await psycopg.AsyncConnection.connect(pg_server.dsn(password="wrong"))


async def test_second_start_finds_the_first_and_leaves_it_running(server_directory: Path) -> None:
    async with EmbeddedPostgres(server_directory / "pg", durable=False) as first:
        async with EmbeddedPostgres(server_directory / "pg") as second:
            assert second.port == first.port
            assert await second.start() is Start.ALREADY_RUNNING
        assert await one(first.dsn(), "SELECT 1") == 1
    assert not first.running()


async def test_data_outlives_a_crash_and_the_port_stays(server_directory: Path) -> None:
    async with EmbeddedPostgres(server_directory / "pg", settings={"work_mem": "5MB"}) as server:
        port = server.port
        await one(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS n")
        await server.kill()
        assert not server.running()
        assert await server.start() is Start.NEW
        assert server.port == port
        assert await one(server.dsn(), "SELECT n FROM kept") == 42
        assert await one(server.dsn(), "SHOW work_mem") == "5MB"


async def test_stale_pid_of_another_program_does_not_hinder(server_directory: Path) -> None:
    server = EmbeddedPostgres(server_directory / "pg", durable=False)
    async with server:
        await server.kill()
        pidfile = server.data / "postmaster.pid"
        pidfile.write_text("\n".join([str(os.getpid()), *pidfile.read_text().splitlines()[1:]]))
        assert not server.running()
        assert await server.start() is Start.NEW


async def test_taken_port_is_replaced(server_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with EmbeddedPostgres(server_directory / "pg", port=port, durable=False) as server:
            assert server.port != port
            assert await one(server.dsn(), "SELECT 1") == 1


async def test_socket_alone_opens_no_port_even_on_a_long_path(server_directory: Path) -> None:
    directory = server_directory / ("a long name " * 8) / "pg"
    async with EmbeddedPostgres(directory, listen=Listen.SOCKET, durable=False) as server:
        assert await one(server.dsn(), "SHOW listen_addresses") == ""
        postmaster = server.postmaster()
        assert postmaster is not None
        assert postmaster.net_connections("inet") == []
    assert not server.socket_directory.exists()


@as_root
async def test_programs_in_a_closed_home_are_copied_beside_the_data(server_directory: Path) -> None:
    home = server_directory / "home"
    home.mkdir(mode=0o700)
    (home / "pginstall").symlink_to(installation())
    async with EmbeddedPostgres(server_directory / "pg", programs=home / "pginstall", durable=False) as server:
        assert await one(server.dsn(), "SELECT 1") == 1
        copied = server.tool("pg_dump")
        assert copied.is_relative_to(server_directory)
        assert not copied.is_relative_to(home)
    # A second server beside it uses the same copy.
    async with EmbeddedPostgres(server_directory / "pg2", programs=home / "pginstall", durable=False) as second:
        assert second.tool("pg_dump") == copied


@as_root
async def test_data_directory_behind_a_closed_door_is_refused_with_a_way_out(server_directory: Path) -> None:
    closed = server_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UserError, match=r"cannot enter .*/closed/pg`; choose a data directory that it can reach"):
        await EmbeddedPostgres(closed / "pg").start()


@pytest.mark.kill
def test_killed_owner_takes_the_server_along(server_directory: Path) -> None:
    server = EmbeddedPostgres(server_directory / "pg")
    owner = owned_by_another_process(server.directory, detached=False)
    assert server.running()
    owner.kill()
    owner.communicate()
    assert eventually(lambda: not server.running())
    # It went by a fast shutdown: the pid file is gone, no recovery is due.
    assert eventually(lambda: not (server.data / "postmaster.pid").exists())


@pytest.mark.kill
async def test_detached_server_outlives_its_owner(server_directory: Path) -> None:
    server = EmbeddedPostgres(server_directory / "pg")
    owner = owned_by_another_process(server.directory, detached=True)
    owner.kill()
    owner.communicate()
    await asyncio.sleep(0.2)
    assert await server.start() is Start.ALREADY_RUNNING
    assert await one(server.dsn(), "SELECT 1") == 1
    await server.stop()
    assert not server.running()


def test_bucket_of_a_test_takes_objects_and_refuses_a_wrong_secret(s3: S3, bucket: str) -> None:
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"kept")
    assert s3.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"kept"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        S3(s3.endpoint, s3.access_key, "wrong").client().list_objects_v2(Bucket=bucket)


async def test_s3_listens_on_loopback_alone_and_survives_freeze_and_kill(server_directory: Path) -> None:
    async with SeaweedFs(server_directory / "s3") as server:
        assert server.pid is not None
        heard = [
            entry.laddr for entry in psutil.Process(server.pid).net_connections("inet") if entry.status == "LISTEN"
        ]
        assert {address.ip for address in heard} == {"127.0.0.1"}
        assert len(heard) == 8
        client = server.client()
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="a", Body=b"x", ServerSideEncryption="AES256")

        server.freeze()
        with pytest.raises(BotoCoreError):
            await asyncio.to_thread(a_hasty(server).list_buckets)
        server.thaw()
        assert client.head_object(Bucket="kept", Key="a")["ServerSideEncryption"] == "AES256"

        endpoint = server.endpoint
        await server.kill()
        assert not server.running()
        await server.start()
        assert server.endpoint == endpoint
        assert client.get_object(Bucket="kept", Key="a")["Body"].read() == b"x"
    async with SeaweedFs(server_directory / "s3") as again:
        assert again.client().get_object(Bucket="kept", Key="a")["Body"].read() == b"x"


def a_hasty(server: SeaweedFs) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        config=Config(connect_timeout=0.5, read_timeout=0.5, retries={"max_attempts": 0}),
    )


async def test_the_witness_of_the_demo_can_vouch_and_take_nothing_back(server_directory: Path) -> None:
    async with SeaweedFs(server_directory / "s3") as server:
        owner = server.client()
        await asyncio.to_thread(owner.create_bucket, Bucket=WITNESS_BUCKET, ObjectLockEnabledForBucket=True)
        await asyncio.to_thread(owner.create_bucket, Bucket="backups")
        values = {"ACCESS": server.witness_access_key, "SECRET": server.witness_secret_key}
        place = Bucket(name=WITNESS_BUCKET, endpoint=server.endpoint, access_key="env:ACCESS", secret_key="env:SECRET")
        witness = S3Witness("vault", place, "record/", SecretReferences(values), keep=timedelta(minutes=1))
        await witness.publish(1, ["a checkpoint"])
        assert list(await witness.newest(1)) == ["a checkpoint"]
        witness.close()

        [version] = (await asyncio.to_thread(owner.list_object_versions, Bucket=WITNESS_BUCKET))["Versions"]
        own = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.witness_access_key,
            aws_secret_access_key=server.witness_secret_key,
            region_name=server.region,
        )
        named: Any = {"Bucket": WITNESS_BUCKET, "Key": version["Key"], "VersionId": version["VersionId"]}
        with pytest.raises(ClientError, match="AccessDenied"):
            await asyncio.to_thread(own.delete_object, **named)
        with pytest.raises(ClientError, match="AccessDenied"):
            await asyncio.to_thread(own.put_object, Bucket="backups", Key="x", Body=b"x")
        assert list(await asyncio.to_thread(owner.get_object, **named)) != []
        own.close()
        owner.close()
