"""`pg_waldump`: the records of archived WAL, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from actions.adapters.postgres_installation import installation
from actions.adapters.programs import Program
from actions.backup.finder import WalRecords
from actions.backup.physical import SEGMENT, Lsn
from actions.errors import VerificationError

LIMIT = 60  # seconds in which it must end once it has written all


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
            if code != 0 and not self._in_last(program.stderr(), last):
                said = " ".join(program.stderr().split())[-400:]
                raise VerificationError(f"The archived WAL from `{first}` to `{last}` cannot be read: {said}")

    @staticmethod
    def _in_last(said: str, last: str) -> bool:
        """Whether what it stumbled over is in the last segment."""
        for word in said.replace(":", " ").replace(",", " ").split():
            try:
                place = Lsn.parse(word)
            except ValueError:
                continue
            if place // SEGMENT >= _number(last):
                return True
        return False


def _number(segment: str) -> int:
    """The segment's number from the beginning of the WAL, for segments of 16 MB."""
    return (int(segment[8:16], 16) << 32 | int(segment[16:24], 16) * SEGMENT) // SEGMENT
