"""What pgBackRest says when it fails, as errors that name who must act and what to do next.

Its codes are those of `src/build/error/error.yaml`; they are the exit code too, and stand in the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from actions.adapters.programs import ProgramError, ProgramTimeoutError
from actions.backup.patience import AwayError
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError

_ERROR = re.compile(r"ERROR: \[(\d{3})\]: (.*?)(?=\n\S*\s*(?:HINT|P\d\d)|\n\s*\n|\n\*\*\*|\Z)", re.DOTALL)
_HINT = re.compile(r"HINT: (.*)")
_STATUS = re.compile(r"HTTP request failed with (\d{3})")
_SILENT = re.compile(r"timeout after \d+ms waiting for (?:read|write) (?:from|to) '([^']+)'")
"""Of a store that takes connections and says nothing. Its code is that of a file that cannot be read."""

KEPT = 400  # characters of what it said


@dataclass(frozen=True)
class _Meaning:
    kind: type[DrError]
    next: str


_ASK_OPERATOR = "See the whole message in the job's log"
_MEANINGS: Mapping[int, _Meaning] = {
    26: _Meaning(VerificationError, "Verify the repository and choose another backup."),
    27: _Meaning(UserError, "Correct pgBackRest's configuration file."),
    28: _Meaning(UserError, "The stanza is of another cluster: check `stanza`, or run `stanza-upgrade` on the server."),
    30: _Meaning(UserError, "Install a pgBackRest that has this command."),
    31: _Meaning(UserError, "Correct pgBackRest's configuration file, or install a newer pgBackRest."),
    32: _Meaning(UserError, "Correct pgBackRest's configuration file."),
    37: _Meaning(UserError, "Add the option to pgBackRest's configuration file, or to the plan file's references."),
    38: _Meaning(PermanentError, "Nothing is restored over a running server."),
    40: _Meaning(PermanentError, "Nothing is restored into a folder that holds something."),
    41: _Meaning(UserError, "Let the account that runs pgBackRest read the file."),
    42: _Meaning(
        VerificationError, "The file is damaged: verify the repository, and restore from another of its copies."
    ),
    44: _Meaning(
        UserError, "The archive is of another cluster: check `stanza`, or run `stanza-upgrade` on the server."
    ),
    46: _Meaning(UserError, "Install a pgBackRest that knows this version of PostgreSQL."),
    49: _Meaning(AwayError, "Check that the host runs and can be reached from here."),
    50: _Meaning(TemporaryError, "Another pgBackRest command works on this stanza; wait for its end."),
    51: _Meaning(UserError, "The stanza is of another cluster: check `stanza`, or run `stanza-upgrade` on the server."),
    55: _Meaning(UserError, "Check the repository in pgBackRest's configuration, or run `stanza-create`."),
    56: _Meaning(TemporaryError, "Check that the server runs and that pgBackRest may log in (`pg1-*`)."),
    57: _Meaning(PermanentError, "See the server's log."),
    58: _Meaning(UserError, "The stanza is of another cluster: check `stanza` and `pg1-path`."),
    62: _Meaning(UserError, "Somebody stopped pgBackRest for this stanza: `pgbackrest start` lets it work again."),
    64: _Meaning(TemporaryError, "Look for a full disk."),
    68: _Meaning(UserError, "Set `archive_command` on the server to `pgbackrest --stanza=... archive-push %p`."),
    72: _Meaning(UserError, "Run it where pgBackRest's configuration expects it: see `pg1-host` and `repo1-host`."),
    75: _Meaning(UserError, "Choose a backup of the catalogue, and a moment after its end."),
    80: _Meaning(UserError, "Check `pg1-path` and `pg1-port` in pgBackRest's configuration."),
    82: _Meaning(PermanentError, "WAL does not reach the repository: see `pg_stat_archiver` and the server's log."),
    87: _Meaning(UserError, "Set `archive_mode = on` on the server and restart it."),
    95: _Meaning(UserError, "The pass phrase of the repository is wrong: check the reference to `repo1-cipher-pass`."),
    101: _Meaning(AwayError, "The object store does not answer as it should; try again."),
    103: _Meaning(UserError, "Check the repositories in pgBackRest's configuration."),
    105: _Meaning(UserError, "Check the keys of the repository."),
}


def translated(error: ProgramError, doing: str) -> DrError:
    """The error in our tree. `doing` completes "pgBackRest could not ..."."""
    if isinstance(error, ProgramTimeoutError):
        return TemporaryError(f"pgBackRest could not {doing}: {error}", retry_after=timedelta(minutes=1))
    if error.code is None:
        return UserError(f"pgBackRest could not {doing}: `pgbackrest` {_reason(error)}. Install it on this machine.")
    code, said, hints = _parsed(error)
    status = _STATUS.search(said)
    if status is not None:
        return _refused(int(status[1]), said, doing)
    if (silent := _SILENT.search(said)) is not None:
        return AwayError(
            f"pgBackRest could not {doing}: `{silent[1]}` does not answer. Check that it runs and can be reached."
        )
    if code < 0:
        return TemporaryError(f"pgBackRest could not {doing}: {error}")
    meaning = _MEANINGS.get(code)
    if meaning is None:
        advice = f" {hints[0][:1].upper()}{hints[0][1:]}" if hints else f" {_ASK_OPERATOR}."
        return PermanentError(f"pgBackRest could not {doing}: {said} (its error {code}).{advice}")
    return meaning.kind(f"pgBackRest could not {doing}: {said} (its error {code}). {meaning.next}")


def _parsed(error: ProgramError) -> tuple[int, str, list[str]]:
    found = _ERROR.search(error.stderr)
    if found is None:
        said = " ".join(error.stderr.split()) or "it said nothing"
        return error.code or 0, said[-KEPT:], []
    said = " ".join(found[2].split()).rstrip(".")
    return int(found[1]), said[:KEPT], [" ".join(hint.split()) for hint in _HINT.findall(error.stderr)]


def _refused(status: int, said: str, doing: str) -> DrError:
    if status in (401, 403):
        return UserError(
            f"The object store refused pgBackRest ({status}), so it could not {doing}. Check the keys of the "
            "repository (`repo1-s3-key`, `repo1-s3-key-secret`), its bucket and its region."
        )
    if status == 404:
        return UserError(f"The object store has no such bucket (404), so pgBackRest could not {doing}. Check it.")
    return TemporaryError(f"The object store answered {status}, so pgBackRest could not {doing}: {said[:120]}")


def _reason(error: ProgramError) -> str:
    return str(error).partition(" ")[2].rstrip(".") or "cannot be started"
