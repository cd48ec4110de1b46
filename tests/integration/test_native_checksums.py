"""A server without page checksums, and one whose checksums are turned on between two base backups, which
`pg_combinebackup` would mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.backup.physical import BackupKind, RecoveryTarget
from actions.errors import UserError
from tests.fixtures.physical import standing, turn_checksums

pytestmark = [pytest.mark.integration, pytest.mark.corruption]


async def test_nothing_rests_on_a_backup_from_before_and_a_new_full_one_is_restored(run_directory: Path) -> None:
    with standing(run_directory) as world:
        await turn_checksums(world, "disable")
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "INSERT INTO ledger VALUES (1)")
        await world.take("bare")
        await turn_checksums(world, "enable")

        instead = (await world.take("full", BackupKind.INCREMENTAL)).manifest
        assert (instead.kind, instead.parent) == (BackupKind.FULL, None)
        assert "turned on since `bare` was made, so nothing can rest on it." in instead.full_because
        with pytest.raises(UserError, match=r"`full` was already made full .* `/dr-backup base main`\."):
            await world.take("next", BackupKind.INCREMENTAL, "bare")
        await world.take("next", BackupKind.INCREMENTAL)
        await world.archive()

        restored = await world.restore(RecoveryTarget(latest=True))
        assert (restored.backup, restored.checked_pages) == ("next", True)


async def test_a_server_without_page_checksums_is_restored_and_says_that_none_could_be_checked(
    run_directory: Path,
) -> None:
    with standing(run_directory) as world:
        await turn_checksums(world, "disable")
        world.sql("CREATE TABLE ledger (row int PRIMARY KEY)", "INSERT INTO ledger VALUES (1)")
        await world.take("bare")
        await world.archive()

        restored = await world.restore(RecoveryTarget(latest=True))
        assert (restored.backup, restored.checked_pages, restored.without_checksums) == ("bare", False, True)
        found = await world.scratch.find("s1")
        assert found is not None
        assert found.restored == restored  # as it is kept with the instance
