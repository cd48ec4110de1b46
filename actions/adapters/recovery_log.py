"""What PostgreSQL says in its log while it recovers, in our words. Its messages are English: `lc_messages` is ours."""

from __future__ import annotations

import re

from actions.backup.physical import RecoveryTarget
from actions.backup.physical_tools import EndsEarlyError
from actions.errors import DrError, TemporaryError, UserError, VerificationError

_STOPPED = re.compile(r"LOG:  recovery stopping (?:before|after|at) ")
_LAST = re.compile(r"last completed transaction was at log time ([^\n]+)")
_TOO_LOW = re.compile(r"DETAIL:  (\w+) = \d+ is a lower setting than on the primary server, where its value was (\d+)")
_FATAL = re.compile(r"(?:FATAL|PANIC):  ([^\n]+)")


def stopped_at_target(log: str) -> bool:
    """Whether it stopped where it was told to. A server that merely runs, or is paused, proves nothing."""
    return _STOPPED.search(log) is not None


def too_low(log: str) -> dict[str, str]:
    """Settings that the primary raised later than the base backup: replay waits until they are as high here."""
    return dict(_TOO_LOW.findall(log)) if "hot standby is not possible" in log else {}


def why_it_ended(log: str, target: RecoveryTarget) -> DrError:
    """The error for a server that ended before its target."""
    if "recovery ended before configured recovery target was reached" in log:
        last = _LAST.findall(log)
        known = f"the last commit in it is of {last[-1]}" if last else "it holds no commit after the base backup"
        return EndsEarlyError(
            f"The archived WAL ends before {target}: {known}. Choose an earlier moment, or the end of the archive. "
            "If the primary lives, a commit after that moment and `SELECT pg_switch_wal()` in a transaction of its own "
            "bring the rest into the archive."
        )
    if "requested recovery stop point is before consistent recovery point" in log:
        return UserError(f"{target} lies before the end of the base backup. Choose an earlier backup for it.")
    fatal = _FATAL.findall(log)
    if any("No space left on device" in line for line in fatal):
        return TemporaryError("The disk of the scratch instances is full, so PostgreSQL ended. Free space there.")
    if any("Address already in use" in line for line in log.splitlines() if "LOG:" in line or "FATAL:" in line) and any(
        "could not create any" in line for line in fatal
    ):
        return UserError("Another program has its port. Find it with `ss -ltnp`, stop it, then try again.")
    said = fatal[-1].rstrip(".") if fatal else " ".join(log.split())[-300:] or "it said nothing"
    return VerificationError(f"PostgreSQL cannot recover what was restored: {said}. Use another backup.")


def damaged(said: str) -> VerificationError:
    """The error for a server that runs and ends every connection with a FATAL."""
    why = _FATAL.findall(said)[-1].rstrip(".")
    return VerificationError(f"PostgreSQL runs on what was restored, but cannot be asked: {why}. Use another backup.")
