"""Passwords for PostgreSQL's programs: in a file that only we can read, never in argv."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from psycopg.conninfo import make_conninfo


@contextlib.contextmanager
def access(parameters: Mapping[str, str], private: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A connection string without the password, and the environment that points to it in a 0600 file."""
    public = {key: value for key, value in parameters.items() if key not in ("password", "options", "sslpassword")}
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made by mkstemp, so 0600 from the first moment.
    with tempfile.NamedTemporaryFile("w", dir=private, prefix="pgpass-") as stream:
        password = parameters.get("password", "").replace("\\", "\\\\").replace(":", "\\:")
        env: dict[str, str] = {}
        if password:
            stream.write(f"*:*:*:*:{password}\n")
            stream.flush()
            env["PGPASSFILE"] = stream.name
        yield make_conninfo(**public), env
