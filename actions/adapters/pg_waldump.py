"""`pg_waldump`: the records of archived WAL, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from actions.adapters.postgres_installation import installation
from actions.adapters.programs import Program
from actions.backup.finder import WalRecords
from actions.backup.physical import Lsn
from actions.backup.segments import Segment
from actions.errors import VerificationError


class PgWaldump(WalRecords):
    """The program of `tools`, or the bundled one. Its version must be that of the server that wrote the WAL."""

    def __init__(self, tools: str = "") -> None:
        self._program = (Path(tools) if tools else installation() / "bin") / "pg_waldump"

    def lines(self, directory: Path, first: str, last: str, *, resources: Sequence[str]) -> Iterator[str]:
        wanted = [word for name in resources for word in ("--rmgr", name)]
        command: list[str | Path] = [self._program, "--path", directory, *wanted, first, last]
        reached = ""
        # Its times are in the time zone of its process.
        with Program.start(command, env={"TZ": "UTC", "PGTZ": "UTC"}, stdout=True) as program:
            if program.stdout is None:
                raise VerificationError("`pg_waldump` was started without a pipe.")
            for raw in program.stdout:
                reached = raw.decode(errors="replace").rstrip("\n")
                yield reached
            code = program.wait()
            # It ends with an error where the WAL ends; that is as it should be only in the last segment.
            if code != 0 and not self._in_last(program.stderr(), last, (directory / last).stat().st_size):
                said = " ".join(program.stderr().split())[-400:]
                raise VerificationError(f"The archived WAL from `{first}` to `{last}` cannot be read: {said}")

    @staticmethod
    def _in_last(said: str, last: str, size: int) -> bool:
        """Whether what it stumbled over is in the last segment, or after it."""
        for word in said.replace(":", " ").replace(",", " ").split():
            try:
                place = Lsn.parse(word)
            except ValueError:
                continue
            if place >= Segment.parse(last, size).start:
                return True
        return False
