"""An index of production that is damaged under valid page checksums: `pg_amcheck` alone sees it, before anything of
production is touched, and the index is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from actions.backup.physical import RecoveryTarget
from actions.catalog.proof import ProveParams
from actions.errors import VerificationError
from actions.runner import Outcome
from tests.fixtures.physical import standing, turn_checksums
from tests.fixtures.proving import proving_of
from tests.physical_world import PhysicalWorld

pytestmark = [pytest.mark.integration, pytest.mark.corruption]

PAGE, HEADER, POINTER = 8192, 24, 4  # bytes: of a page, of its header, of each pointer after it
LATEST = RecoveryTarget(latest=True)
NAMED = r"`pg_amcheck` found damage in database `postgres`: `postgres\.public\.doc_body_idx`.* `REINDEX INDEX`"


def swap_pointers(index: Path) -> None:
    """The second and the third entry of the first leaf change places, so that a search may miss either."""
    body = bytearray(index.read_bytes())
    second = PAGE + HEADER + POINTER
    first, last = body[second : second + POINTER], body[second + POINTER : second + 2 * POINTER]
    body[second : second + 2 * POINTER] = last + first
    index.write_bytes(body)


@pytest.fixture
async def world(run_directory: Path, server_directory: Path) -> AsyncIterator[PhysicalWorld]:
    """Backed up, with its WAL archived, after the damage was done."""
    with standing(run_directory) as made:
        made.sql(
            "CREATE EXTENSION amcheck",
            "CREATE TABLE doc AS SELECT g AS id, md5(g::text) AS body FROM generate_series(1, 2000) g",
            "CREATE INDEX ON doc (body)",
        )
        [[path]] = made.sql("SELECT pg_relation_filepath('doc_body_idx')")
        await turn_checksums(made, "disable")
        await made.server.stop()
        swap_pointers(made.server.data / str(path))
        await made.server.start()
        await turn_checksums(made, "enable")  # which gives the page as it is now a checksum
        world = replace(made, directory=server_directory)
        await world.take("full")
        await world.archive()
        yield world


def started(world: PhysicalWorld) -> object:
    """When production was started, and what it holds."""
    return world.sql("SELECT pg_postmaster_start_time(), (SELECT count(*) FROM doc), pg_relation_filepath('doc')")


async def test_a_restore_names_it_and_leaves_nothing(world: PhysicalWorld) -> None:
    before = started(world)
    with pytest.raises(VerificationError, match=NAMED) as told:
        await world.restore(LATEST, amcheck=True)
    assert "item order invariant violated" in str(told.value)
    assert world.clean() == []
    assert await world.scratch.instances() == []
    # Every page has its checksum, every file that of the server's list: nothing else could have told.
    restored = await world.restore(LATEST)
    assert restored.checked_pages
    assert started(world) == before


async def test_a_restore_test_fails_by_its_name_and_tells_how_it_is_put_right(world: PhysicalWorld) -> None:
    before = started(world)
    async with proving_of(world) as proving:
        result = await proving.do("backup.prove", ProveParams())
        assert result.outcome is Outcome.FAILED
        [proof] = await proving.proofs()
        assert "`postgres.public.doc_body_idx`" in (proof.problem or "")
        assert proof.known["PostgreSQL"]
        assert (proof.problem or "") in result.message
        assert not await world.scratch.instances()
        assert any(finding.check == "failed-proof" for finding in (await proving.status()).findings)
        assert started(world) == before

        world.sql("REINDEX INDEX doc_body_idx")
        await world.take("mended")
        await world.archive()
        result = await proving.do("backup.prove", ProveParams(), "k7m2n3p4q6")
        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert {each.backup for each in await proving.proofs() if each.problem is None} == {"mended"}
