"""A `pg_control` for programs that ask which cluster WAL belongs to, when the server's own is out of reach.

`pgbackrest archive-get` reads it to choose the archive. PostgreSQL's own programs make it: `initdb` of the server's
version, the number of the cluster put in, and `pg_resetwal`, which writes the check sum anew.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from datetime import timedelta
from pathlib import Path

from actions.adapters.programs import Account, run_in_thread
from actions.errors import UserError

LIMIT = timedelta(minutes=2)


class ControlFiles:
    """Folders with nothing but `global/pg_control` in them, one for each cluster, under `directory`."""

    def __init__(self, directory: Path, *, account: Account | None) -> None:
        self._directory, self._account = directory, account

    async def of(self, system_id: str, programs: Path, segment_bytes: int) -> Path:
        """A folder that passes for the data directory of this cluster. `programs` is the `bin` of its major version.

        Raises UserError when those programs are not there.
        """
        folder = self._directory / f"{system_id}-{segment_bytes >> 20}"
        if not folder.exists():
            await asyncio.to_thread(self._make, folder, system_id, programs, segment_bytes)
        return folder

    def _make(self, folder: Path, system_id: str, programs: Path, segment_bytes: int) -> None:
        if not (programs / "initdb").exists():
            raise UserError(f"`{programs}` has no `initdb`. Set `tools` of the server to the programs of its version.")
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self._directory))
        try:
            self._give(made)
            data = made / "data"
            self._run(
                *(programs / "initdb", "--pgdata", data, "--username", "postgres", "--auth", "reject", "--no-sync"),
                *("--locale", "C", "--encoding", "UTF8", "--wal-segsize", str(segment_bytes >> 20)),
            )
            control = data / "global" / "pg_control"
            with control.open("r+b") as stream:
                stream.write(struct.pack("=Q", int(system_id)))  # its first field, since 8.0
            self._run(programs / "pg_resetwal", "--force", data)
            (made / "only" / "global").mkdir(parents=True)
            shutil.copyfile(control, made / "only" / "global" / "pg_control")
            self._give(made / "only", made / "only" / "global", made / "only" / "global" / "pg_control")
            try:
                (made / "only").rename(folder)
            except OSError:  # somebody else was quicker, and that one is as good
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _run(self, *argv: str | Path) -> None:
        run_in_thread(argv, account=self._account, cwd=Path("/"), timeout=LIMIT)

    def _give(self, *paths: Path) -> None:
        if self._account is not None:
            for path in paths:
                os.chown(path, self._account.uid, self._account.gid)
