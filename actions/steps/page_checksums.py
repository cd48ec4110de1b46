"""What is said of servers whose pages bear no checksums: damage on their disk goes into every copy unseen."""

from __future__ import annotations

from actions.contract import Finding, Verdict

CHECK = "page checksums"
TURN_ON = "Turn them on while it is stopped: `pg_checksums --enable`. Then make a full base backup."


def server_findings(server: str, checksums: bool | None, *, check: str = CHECK) -> list[Finding]:
    """Before a base backup, and in the doctor. Nothing where they are on, or nobody knows."""
    if checksums is not False:
        return []
    text = f"Server `{server}` has no page checksums: nobody sees damage on its disk, and its backups carry it along."
    return [Finding(check=check, verdict=Verdict.WARN, detail=text, hint=TURN_ON)]


def backup_findings(server: str, backup: str, checksums: bool | None) -> list[Finding]:
    """Before a restore of this base backup: whether its pages can be checked afterwards."""
    if checksums:
        return []
    if checksums is None:
        text = (
            f"Nobody knows whether the pages of `{backup}` bear checksums: the bot did not make it, and its engine does"
            " not tell. They are checked where they do, and the end of the restore says whether they were."
        )
        return [Finding(check=CHECK, verdict=Verdict.OK, detail=text)]
    text = f"Server `{server}` had no page checksums when `{backup}` was made: its pages cannot be checked."
    return [Finding(check=CHECK, verdict=Verdict.WARN, detail=text, hint=TURN_ON)]
