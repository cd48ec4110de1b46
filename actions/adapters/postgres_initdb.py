"""`initdb`: a new, empty data directory."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from actions.adapters.programs import Account, run_in_thread

LIMIT = timedelta(minutes=5)
QUICK = timedelta(seconds=30)


def initdb(
    program: Path,
    data: Path,
    *,
    superuser: str,
    account: Account | None,
    password: Path | None = None,
    durable: bool = True,
) -> None:
    """Fill the folder, which must be empty or missing. With page checksums, UTF-8 and the order of bytes; whoever logs
    in needs the password in that file, or nobody can until somebody writes who may. Blocking; raises ProgramError."""
    handed = () if password is None else ("--pwfile", str(password))
    run_in_thread(
        [
            program,
            *("--pgdata", str(data), "--username", superuser, *handed),
            *("--auth", "reject" if password is None else "scram-sha-256"),
            *("--data-checksums", "--encoding", "UTF8", "--locale", "C"),
            *_provider(program),
            *(() if durable else ("--no-sync",)),
        ],
        account=account,
        cwd=data.parent,
        timeout=LIMIT,
    )


def _provider(program: Path) -> tuple[str, ...]:
    """The provider that behaves alike on every machine, where there is one; the wheel has no ICU."""
    said = run_in_thread([program, "--version"], timeout=QUICK).text
    major = re.search(r"\(PostgreSQL\) (\d+)", said)
    known = major is not None and int(major[1]) >= 17
    return ("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8") if known else ()
