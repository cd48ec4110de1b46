"""A machine that has nothing of ours: where people would use what lies beside the backups."""

from __future__ import annotations

import shutil
import sysconfig
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.programs import Account, run
from tests.fixtures.needed import SYSTEM_PYTHON
from tests.fixtures.shared_s3 import S3

NEEDED = pytest.mark.needs("zstd", "python3")
LIMIT = timedelta(minutes=2)
PATH = "/usr/local/bin:/usr/bin:/bin"
AGE = """#!/bin/sh
[ "$1 $2" = "-d -i" ] || exit 2
exec env PYTHONPATH={packages} {python} -c 'import pyrage, sys
identity = pyrage.x25519.Identity.from_str(open(sys.argv[1]).read().strip())
with open(sys.argv[2], "rb") as stored: pyrage.decrypt_io(stored, sys.stdout.buffer, [identity])' "$3" "$4"
"""
"""For machines that have no `age`."""


class Bare:
    """A folder, an account, and the programs that RESTORE.md asks for."""

    def __init__(self, folder: Path, server: EmbeddedPostgres, identity: str, s3: S3 | None = None) -> None:
        self.folder, self.account = folder, server.account
        programs = folder / "programs"
        programs.mkdir()
        (programs / "python3").symlink_to(SYSTEM_PYTHON)
        if shutil.which("age", path=PATH) is None:
            packages = sysconfig.get_paths()["purelib"]
            (programs / "age").write_text(AGE.format(packages=packages, python=SYSTEM_PYTHON))
            (programs / "age").chmod(0o755)
        (folder / "identity").write_text(identity)
        self.env = {
            "PATH": f"{programs}:{server.tool('psql').parent}:{PATH}",
            "HOME": str(folder),
            "AGE_IDENTITY_FILE": str(folder / "identity"),
        }
        if s3 is not None:
            self.env |= {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        self.hand_over()

    def hand_over(self) -> None:
        account: Account | None = self.account
        for path in (self.folder, *self.folder.rglob("*")):
            if account is not None and not path.is_symlink():
                shutil.chown(path, account.uid, account.gid)

    def fetched(self, s3: S3, bucket: str, prefix: str) -> str:
        """What lies beside the backups, as files; the page."""
        client = s3.client()
        for found in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}restore/")["Contents"]:
            body = client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            (self.folder / Path(found["Key"]).name).write_bytes(body)
        self.hand_over()
        return (self.folder / "RESTORE.md").read_text()

    async def type(self, *lines: str, **env: str) -> str:
        script = "\n".join(("set -euo pipefail", *lines))
        argv = ["bash", "-c", script]
        output = await run(argv, env={**self.env, **env}, cwd=self.folder, account=self.account, timeout=LIMIT)
        return output.text + output.stderr


def commands(page: str, word: str, of: str) -> list[str]:
    """The lines of the page that call the program with this word for that server or database."""
    return [line for line in page.splitlines() if line.startswith(f"python3 restore.py {word} ") and of in line]


async def refused(bare: Bare, *lines: str, **env: str) -> str:
    """What it said when it stopped."""
    return await bare.type(*lines[:-1], f"! {{ {lines[-1]} ; }}", **env)
