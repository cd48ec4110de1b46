"""`python -m tests.held_job GO job SPEC [--folder DIR] [--message FILE]`: `drbot job` on fakes, held until GO exists.

It notes its pid in the file `starts` beside GO when it begins to work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from actions.backup.engines import PhysicalEngines
from actions.backup.jobs import Engines, main
from actions.backup.manifest import SignedManifest
from actions.ports import DumpRequest, Progress, ProgressReport
from actions.site import BackupPolicy, Database, DatabaseRef, Site
from tests.fakes.backups import SIGNER, MemoryBackups
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.files import memory_files
from tests.fakes.postgres import EMPTY, MemoryPostgres
from tests.fakes.tables import MemoryTables
from tests.fixtures.waiting import until

ROOT = Path(__file__).parents[1]
NAMES = ("shop", "large")
PATIENCE = 60.0  # seconds until it gives up waiting for GO


def backups() -> MemoryBackups:
    """Two databases; the manifest of `large` is too long for a termination message."""
    memory = MemoryPostgres("main")
    memory.add(DatabaseRef("main", "shop"))
    many = EMPTY.model_copy(update={"rows": {f"public.table_{number}": number for number in range(5000)}})
    memory.add(DatabaseRef("main", "large"), fingerprint=many)
    databases = {name: Database(name=name, server="main", owner="app") for name in NAMES}
    policies = {
        name: BackupPolicy(
            database=name, bucket="b", recipients=("r",), identity="i", signing_key="k", trusted_signers=(SIGNER,)
        )
        for name in NAMES
    }
    return MemoryBackups(Site(databases=databases, backups=policies), memory)


def command(go: Path) -> list[str]:
    """The argv that `job SPEC ...` is put behind."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.held_job", str(go)]


class Held(MemoryBackups):
    """Waits, and says so."""

    go = Path()

    async def dump(self, request: DumpRequest, progress: Progress) -> SignedManifest:
        await asyncio.to_thread(self._note)
        progress(ProgressReport(done=1, total=2, phase="dump"))
        sys.stderr.write("held until told to go\n")
        await until(self.go.exists, within=PATIENCE)
        return await super().dump(request, progress)

    def _note(self) -> None:
        with self.go.with_name("starts").open("a") as stream:
            stream.write(f"{os.getpid()}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("go", type=Path)
    parser.add_argument("word")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--message", type=Path)
    asked = parser.parse_args()
    engine = backups()
    held = Held(engine._site, engine._postgres)
    held.go = asked.go
    none = PhysicalEngines(engine._site, {})
    engines = Engines(held, none, none, NoDumpTests(), MemoryTables(engine._postgres), memory_files())
    sys.exit(asyncio.run(main(asked.spec, engines, folder=asked.folder, message=asked.message)))
