"""How `pgbackrest` is called and read: a script in its place writes down what it was given and says what it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from actions.adapters.pgbackrest import PgBackRestProgram
from actions.backup.pgbackrest_info import Repository
from actions.backup.pgbackrest_keys import PgBackRestKeys, StanzaSecret
from actions.backup.pgbackrest_tools import ArchivePlace, ExpireOrder, RestoreOrder
from actions.errors import TemporaryError, UserError
from actions.site import PhysicalPolicy, Server, Site
from tests.fakes.secrets import MemorySecrets

PASS_PHRASE = "a pass phrase of the tests alone"
SCRIPT = """#!/bin/sh
{ for word in "$@"; do printf '%s\\n' "$word"; done; } > "$0.argv"
env > "$0.env"
cat "$0.out" 2>/dev/null
cat "$0.err" >&2 2>/dev/null
exit "$(cat "$0.code" 2>/dev/null || echo 0)"
"""


class Stand:
    """The script, and what it was given."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pgbackrest"
        self.path.write_text(SCRIPT)
        self.path.chmod(0o755)

    def says(self, out: str = "", *, error: str = "", code: int = 0) -> None:
        for name, text in (("out", out), ("err", error), ("code", str(code))):
            self.path.with_name(f"pgbackrest.{name}").write_text(text)

    @property
    def argv(self) -> list[str]:
        return self.path.with_name("pgbackrest.argv").read_text().splitlines()

    @property
    def environment(self) -> Mapping[str, str]:
        lines = self.path.with_name("pgbackrest.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Stand(folder)


@pytest.fixture
def program(tmp_path: Path) -> PgBackRestProgram:
    config = tmp_path / "pgbackrest.conf"
    config.write_text(
        "[global]\nrepo1-s3-bucket=backups\nrepo2-s3-bucket=elsewhere\n[main]\npg1-path=/srv/production\n"
    )
    policy = PhysicalPolicy(
        server="primary",
        engine="pgbackrest",
        bucket="backups",
        wal_buckets=("backups",),
        recipients=("age1",),
        identity="env:IDENTITY",
        signing_key="env:KEY",
        trusted_signers=(),
        own=PgBackRestKeys(
            stanza="main",
            stanza_config=str(config),
            stanza_secrets=(StanzaSecret(option="repo1-cipher-pass", value="env:CIPHER"),),
        ),
    )
    server = Server(name="primary", admin_dsn="env:DSN", tools="/nowhere")
    site = Site(servers={"primary": server}, physical={"primary": policy})
    made = PgBackRestProgram(site, MemorySecrets({"env:CIPHER": PASS_PHRASE}), directory=tmp_path / "control")
    vars(made)["_account"] = None  # the script is ours, whoever runs the tests
    return made


async def test_the_pass_phrase_is_in_the_environment_and_nowhere_else(stand: Stand, program: PgBackRestProgram) -> None:
    stand.says(json.dumps([]))
    with pytest.raises(UserError, match="stanza"):
        await program.info("primary")
    assert stand.environment["PGBACKREST_REPO1_CIPHER_PASS"] == PASS_PHRASE
    assert not any(PASS_PHRASE in word for word in stand.argv)
    stand.says(error=f"ERROR: [095]: cannot decrypt with {PASS_PHRASE}", code=95)
    with pytest.raises(UserError) as refused:
        await program.info("primary")
    assert PASS_PHRASE not in str(refused.value)


async def test_a_restore_goes_into_the_folder_it_is_told_and_nowhere_else(
    stand: Stand, program: PgBackRestProgram, tmp_path: Path
) -> None:
    stand.says("P01 DETAIL: restore file /x/base/1 (8KB, 37.50%) checksum abc\n")
    seen: list[int] = []
    order = RestoreOrder(
        label="20261127-080000F", repository=2, data=tmp_path / "data", tablespaces=tmp_path / "spaces"
    )
    await program.restore("primary", order, seen.append)
    assert f"--pg1-path={tmp_path}/data" in stand.argv
    assert f"--tablespace-map-all={tmp_path}/spaces" in stand.argv
    assert {"--repo=2", "--set=20261127-080000F"} <= set(stand.argv)
    # Its own `recovery.signal` and host of production would lead elsewhere.
    assert {"--reset-pg1-host", "--type=none"} <= set(stand.argv)
    assert not {"--delta", "--force"} & set(stand.argv)
    assert not any("/srv/production" in word for word in stand.argv)
    assert seen == [37]
    await program.restore("primary", order.model_copy(update={"begun": True}), seen.append)
    assert "--delta" in stand.argv
    assert "--force" not in stand.argv


async def test_a_backup_expires_nothing_by_itself(stand: Stand, program: PgBackRestProgram) -> None:
    stand.says()
    await program.backup("primary", "full", {"drbot-id": "base-1"}, lambda percent: None)
    assert {"--no-expire-auto", "--type=full", "--annotation=drbot-id=base-1"} <= set(stand.argv)


async def test_what_expires_is_named_and_nothing_besides(stand: Stand, program: PgBackRestProgram) -> None:
    stand.says(
        "P00   INFO: [DRY-RUN] repo1: expire adhoc backup set 20261001-080000F, 20261001-080000F_20261002-080000D\n"
        "P00   INFO: [DRY-RUN] repo1: remove expired backup 20261001-080000F_20261002-080000D\n"
        "P00   INFO: [DRY-RUN] repo1: remove expired backup 20261001-080000F\n"
        "P00   INFO: [DRY-RUN] repo1: 15-1 remove archive, start = 000000010000000000000001, stop = "
        "000000010000000000000007\n"
    )
    expired = await program.expire(
        "primary", ExpireOrder(repository=1, label="20261001-080000F", keep_wal_of=2), dry_run=True
    )
    assert expired.labels == ("20261001-080000F_20261002-080000D", "20261001-080000F")
    assert expired.wal == (("000000010000000000000001", "000000010000000000000007"),)
    assert {"--dry-run", "--set=20261001-080000F", "--repo1-retention-archive=2"} <= set(stand.argv)


async def test_the_version_and_the_buckets(stand: Stand, program: PgBackRestProgram) -> None:
    stand.says("pgBackRest 2.53.1\n")
    assert str(await program.version()) == "2.53.1"
    assert program.buckets("primary") == {1: "backups", 2: "elsewhere"}


PUSH = "pgbackrest --stanza=main archive-push %p"


@pytest.mark.parametrize(
    ("added", "command", "limit"),
    [
        ("", PUSH, ""),
        ("[global]\narchive-push-queue-max=4TiB\n", PUSH, "4TiB"),
        ("[global]\narchive-push-queue-max=4TiB\n[global:archive-push]\narchive-push-queue-max = 3GB\n", PUSH, "3GB"),
        ("[global:archive-push]\narchive-push-queue-max=3GB\n[main]\narchive-push-queue-max=2GB\n", PUSH, "2GB"),
        ("[main]\narchive-push-queue-max=2GB\n[main:archive-push]\narchive-push-queue-max=1GB\n", PUSH, "1GB"),
        ("[other]\narchive-push-queue-max=2GB\n", PUSH, ""),
        ("[other]\narchive-push-queue-max=2GB\n", "pgbackrest --stanza other archive-push %p", "2GB"),
        ("[global:backup]\narchive-push-queue-max=2GB\n", PUSH, ""),
        ("[main]\narchive-push-queue-max=2GB\n", f"{PUSH} --archive-push-queue-max=64MB", "64MB"),
        ("[main]\narchive-push-queue-max=2GB\n", f"PGBACKREST_ARCHIVE_PUSH_QUEUE_MAX='1 GB' {PUSH}", "1 GB"),
        ("[main]\narchive-push-queue-max=2GB\n", f"{PUSH} --config=/nowhere/pgbackrest.conf", ""),
        ("[main]\narchive-push-queue-max=2GB\n", f"{PUSH} && echo 'not closed", "2GB"),
    ],
)
def test_what_makes_pgbackrest_throw_wal_away_is_found_wherever_it_is_said(
    program: PgBackRestProgram, tmp_path: Path, added: str, command: str, limit: str
) -> None:
    config = tmp_path / "pgbackrest.conf"
    config.write_text(config.read_text() + added)
    assert program.queue_limit("primary", command) == limit


def test_another_configuration_that_the_server_s_command_names_is_the_one(
    program: PgBackRestProgram, tmp_path: Path
) -> None:
    named = tmp_path / "server's own.conf"
    named.write_text("[global]\narchive-push-queue-max=8GB\n")
    assert program.queue_limit("primary", f'pgbackrest --config="{named}" --stanza=main archive-push %p') == "8GB"


async def test_a_lock_that_another_holds_may_go_away(stand: Stand, program: PgBackRestProgram) -> None:
    stand.says(error="ERROR: [050]: unable to acquire lock on file '/tmp/pgbackrest/main-backup.lock'", code=50)
    with pytest.raises(TemporaryError):
        await program.annotate("primary", "20261127-080000F", {"drbot-pinned": ""})


SEGMENTS = ("000000010000000000000001", "000000010000000000000002")


@pytest.fixture
def place() -> ArchivePlace:
    return ArchivePlace(
        server="primary",
        repository=Repository(id=1, key=1),
        archive="15-1",
        bucket="backups",
        system_id="7440000000000000001",
        version="15",
        segment_bytes=16 << 20,
    )


async def test_without_the_programs_of_the_server_wal_is_refused_with_the_setting_that_helps(
    program: PgBackRestProgram, place: ArchivePlace, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="`tools`"):
        await program.fetch(place, SEGMENTS[0], tmp_path)


async def test_segments_that_do_not_come_ahead_are_no_error_and_leave_nothing(
    stand: Stand, program: PgBackRestProgram, place: ArchivePlace, tmp_path: Path
) -> None:
    (tmp_path / "control" / "7440000000000000001-16").mkdir(parents=True)
    stand.says(error="ERROR: [031]: command does not allow parameters", code=31)
    wal = tmp_path / "wal"
    wal.mkdir()
    await program.fetch_ahead(place, SEGMENTS, wal)
    assert list(wal.iterdir()) == []
    assert stand.argv[-3:] == ["--process-max=2", *SEGMENTS]
    # A lock that production's archiving may hold is none of ours, and what it has spooled neither.
    assert {f"--spool-path={wal}/.ahead", f"--lock-path={wal}/.ahead/lock"} <= set(stand.argv)
