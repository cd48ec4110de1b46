"""A repository whose store takes connections and never answers is given up while people still wait, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.adapters import pgbackrest
from actions.adapters.pgbackrest import PgBackRestProgram
from actions.backup.patience import AwayError
from actions.backup.pgbackrest_info import Repository
from actions.backup.pgbackrest_keys import PgBackRestKeys
from actions.backup.pgbackrest_tools import ArchivePlace
from actions.errors import TemporaryError
from actions.site import PhysicalPolicy, Server, Site
from tests.fakes.secrets import MemorySecrets
from tests.fixtures.hanging import hanging
from tests.fixtures.needed import require
from tests.fixtures.pgbackrest import STANZA

pytestmark = pytest.mark.integration

CONFIG = """[global]
repo1-type=s3
repo1-path=/repository
repo1-s3-bucket=backups
repo1-s3-endpoint=127.0.0.1
repo1-storage-port={port}
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key=key
repo1-s3-key-secret=secret
[{stanza}]
pg1-path=/srv/production
"""


async def test_a_store_that_hangs_is_named_soon(server_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("pgbackrest")
    monkeypatch.setattr(pgbackrest, "LOOK", "--io-timeout=0.2")
    config = server_directory / "pgbackrest.conf"
    policy = PhysicalPolicy(
        server="primary",
        engine="pgbackrest",
        bucket="backups",
        wal_buckets=("backups",),
        recipients=("age1",),
        identity="env:IDENTITY",
        signing_key="env:KEY",
        trusted_signers=(),
        own=PgBackRestKeys(stanza=STANZA, stanza_config=str(config)),
    )
    site = Site(servers={"primary": Server(name="primary", admin_dsn="env:DSN")}, physical={"primary": policy})
    program = PgBackRestProgram(site, MemorySecrets({}), directory=server_directory / "work")
    place = ArchivePlace(
        server="primary",
        repository=Repository(),
        archive="15-1",
        bucket="backups",
        system_id="7",
        version="15",
        segment_bytes=16 << 20,
    )
    async with hanging() as store:
        config.write_text(CONFIG.format(port=store.port, stanza=STANZA))
        with pytest.raises(TemporaryError, match=f"127.0.0.1:{store.port}.* Check that its store runs"):
            await program.info("primary")
        with pytest.raises(AwayError, match=f"`127.0.0.1:{store.port}` does not answer. Check that it runs"):
            await program.archived(place)
