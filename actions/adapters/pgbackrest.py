"""The program `pgbackrest`, run where the worker is: as a repository host, or on the server's own machine.

Secrets of the repository come from pgBackRest's configuration file or, as references of the plan file, through its
environment (`PGBACKREST_REPO1_CIPHER_PASS`); never through argv, which everybody on the machine can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from actions.adapters.control_file import ControlFiles
from actions.adapters.pgbackrest_config import buckets_of, said_to
from actions.adapters.pgbackrest_errors import translated
from actions.adapters.postgres_installation import postgres_account
from actions.adapters.programs import Account, Program, ProgramError, run
from actions.backup.pgbackrest_archive import listing_of
from actions.backup.pgbackrest_info import Stanza, stanza_of
from actions.backup.pgbackrest_keys import keys_of, stanza_name
from actions.backup.pgbackrest_report import expired, verified
from actions.backup.pgbackrest_tools import (
    ArchivePlace,
    Expired,
    ExpireOrder,
    PgBackRest,
    RestoreOrder,
    Verified,
    Version,
)
from actions.backup.wal import WalListing
from actions.errors import PermanentError
from actions.ports import Secrets
from actions.site import Site

log = logging.getLogger(__name__)
PROGRAM = "pgbackrest"
QUICK, SLOW = timedelta(minutes=2), timedelta(hours=24)
LOOK = "--io-timeout=10"  # seconds
"""For what people wait for. A store that takes connections and says nothing is tried four times (2.45); by itself
pgBackRest gives each a minute, so that the whole takes longer than `QUICK` and nobody hears what did not answer."""

NEVER = 9_999_999  # pgBackRest's largest number for a retention: only what is named expires
VERIFIES_ONE = (2, 55, 0)
SPOOL = ".ahead"
AT_ONCE = 2
MISSING = 1  # exit code of `archive-get` for a file that is not in the archive
_PERCENT = re.compile(rb"\(\d+[^,)]*, (\d+)(?:\.\d+)?%\)")


class PgBackRestProgram(PgBackRest):
    """When we are root it runs under the account that runs PostgreSQL, so that what it restores belongs to that one.
    `directory` is where that account can work, and keeps what `archive-get` needs to be asked."""

    def __init__(self, site: Site, secrets: Secrets, *, directory: Path) -> None:
        self._site, self._secrets, self._directory = site, secrets, directory

    @functools.cached_property
    def _account(self) -> Account | None:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return postgres_account(None, must_enter=self._directory)

    async def version(self) -> Version:
        try:
            output = await run([PROGRAM, "version"], account=self._account, cwd=Path("/"), timeout=QUICK)
        except ProgramError as error:
            raise translated(error, "say its version") from error
        found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", output.text)
        if found is None:
            raise PermanentError(f"`pgbackrest version` answered `{output.text.strip()[:80]}`.")
        return Version(major=int(found[1]), minor=int(found[2]), patch=int(found[3] or 0))

    async def info(self, server: str) -> Stanza:
        return stanza_of(
            await self._said(server, ["info", "--output=json", LOOK], "list its backups"), self._stanza(server)
        )

    def buckets(self, server: str) -> Mapping[int, str]:
        return buckets_of(keys_of(self._site.physical_of(server)).stanza_config, self._stanza(server))

    def queue_limit(self, server: str, archive_command: str) -> str:
        config, stanza = keys_of(self._site.physical_of(server)).stanza_config, self._stanza(server)
        return said_to(archive_command, "archive-push-queue-max", config=config, stanza=stanza)

    async def own(self, folder: Path) -> None:
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        if self._account is not None:
            await asyncio.to_thread(os.chown, folder, self._account.uid, self._account.gid)

    # ------------------------------------------------------------ WAL

    async def archived(self, place: ArchivePlace) -> WalListing:
        path = f"archive/{self._stanza(place.server)}/{place.archive}"
        options = ["repo-ls", LOOK, "--output=json", "--recurse", f"--repo={place.repository.key}", path]
        return listing_of(await self._said(place.server, options, "list its archive", stanza=False), place.bucket)

    async def fetch(self, place: ArchivePlace, name: str, into: Path) -> bool:
        part = into / f"{name}.part"
        try:
            where = await self._archive_of(place)
            await self._run(place.server, ["archive-get", LOOK, *where, name, str(part)], level="warn")
            await asyncio.to_thread(part.rename, into / name)
        except ProgramError as error:
            if error.code == MISSING:
                return False
            raise translated(error, f"give out `{name}`") from error
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        return True

    async def fetch_ahead(self, place: ArchivePlace, names: Sequence[str], into: Path) -> None:
        spool = into / SPOOL
        queue = spool / "archive" / self._stanza(place.server) / "in"
        await asyncio.to_thread(shutil.rmtree, spool, ignore_errors=True)
        for folder in (spool, queue.parent.parent, queue.parent, queue):
            await self.own(folder)
        # The process that `archive-get` itself starts with `archive-async`. The locks of production are not ours.
        spooled = ["--archive-async", f"--spool-path={spool}", f"--lock-path={spool / 'lock'}"]
        options = [*await self._archive_of(place), *spooled, f"--process-max={AT_ONCE}"]
        try:
            await self._run(
                place.server, ["archive-get:async", *options, *names], level="warn", limit=QUICK * len(names)
            )
        except ProgramError as error:
            log.warning("pgbackrest brought not all of %s segments ahead: %s", len(names), error)
        await asyncio.to_thread(_take, queue, names, into)
        await asyncio.to_thread(shutil.rmtree, spool, ignore_errors=True)

    async def _archive_of(self, place: ArchivePlace) -> list[str]:
        """Options that name it, wherever its server is."""
        programs = Path(self._site.servers[place.server].tools) if place.server in self._site.servers else Path()
        control = ControlFiles(self._directory, account=self._account)
        cluster = await control.of(place.system_id, programs, place.segment_bytes)
        return [f"--repo={place.repository.key}", "--reset-pg1-host", f"--pg1-path={cluster}"]

    # ------------------------------------------------------------ backups

    async def backup(
        self, server: str, kind: str, annotations: Mapping[str, str], shown: Callable[[int], None]
    ) -> None:
        # Retention is by dependency and knows pins: never by pgBackRest's own at the end of a backup.
        options = ["backup", f"--type={kind}", "--no-expire-auto", *_notes(annotations)]
        await self._followed(server, options, f"make a {kind} backup", shown)

    async def annotate(self, server: str, label: str, annotations: Mapping[str, str]) -> None:
        await self._said(server, ["annotate", f"--set={label}", *_notes(annotations)], f"annotate `{label}`")

    async def verify(self, server: str, label: str, repository: int) -> Verified:
        # Older versions take the option and pass it over, or refuse it.
        one = (f"--set={label}",) if (await self.version()).order >= VERIFIES_ONE else ()
        options = ["verify", f"--repo={repository}", *one, "--output=text", "--verbose"]
        return verified(await self._said(server, options, f"verify `{label}`", level="info"), label)

    async def restore(self, server: str, order: RestoreOrder, shown: Callable[[int], None]) -> None:
        for path in (order.data, order.tablespaces):
            await self.own(path)
        options = [
            *("restore", f"--repo={order.repository}", f"--set={order.label}"),
            # On this machine, wherever production is.
            *("--reset-pg1-host", f"--pg1-path={order.data}"),
            # What it is replayed to, and that it archives nothing, is written by whoever starts it.
            *("--type=none", f"--tablespace-map-all={order.tablespaces}"),
            *(("--delta",) if order.begun else ()),
        ]
        await self._followed(server, options, f"restore `{order.label}`", shown)

    async def expire(self, server: str, order: ExpireOrder, *, dry_run: bool) -> Expired:
        repository = f"--repo{order.repository}-retention"
        options = [
            *("expire", f"--repo={order.repository}", *((f"--set={order.label}",) if order.label else ())),
            *(f"{repository}-full-type=count", f"{repository}-full={NEVER}", f"{repository}-diff={NEVER}"),
            *(f"{repository}-archive-type=full", f"{repository}-archive={order.keep_wal_of or NEVER}"),
            *(("--dry-run",) if dry_run else ()),
        ]
        return expired(await self._said(server, options, "expire what is old", level="info"))

    # ------------------------------------------------------------ inside

    def _stanza(self, server: str) -> str:
        return stanza_name(self._site.physical_of(server))

    def _argv(self, server: str, options: Sequence[str], level: str, *, stanza: bool = True) -> list[str]:
        config, (command, *rest) = keys_of(self._site.physical_of(server)).stanza_config, options
        where = [
            *((f"--config={config}",) if config else ()),
            *((f"--stanza={self._stanza(server)}",) if stanza else ()),
        ]
        logs = [f"--log-level-console={level}", "--log-level-stderr=warn", "--log-level-file=off", "--no-log-timestamp"]
        return [PROGRAM, *where, *logs, command, *rest]

    async def _environment(self, server: str) -> dict[str, str]:
        return {
            f"PGBACKREST_{secret.option.upper().replace('-', '_')}": await self._secrets.resolve(secret.value)
            for secret in keys_of(self._site.physical_of(server)).stanza_secrets
        }

    async def _run(
        self, server: str, options: Sequence[str], *, stanza: bool = True, level: str, limit: timedelta = QUICK
    ) -> str:
        output = await run(
            self._argv(server, options, level, stanza=stanza),
            secrets=await self._environment(server),
            account=self._account,
            cwd=Path("/"),
            timeout=limit if level != "info" else SLOW,
        )
        return output.text

    async def _said(
        self, server: str, options: Sequence[str], doing: str, *, stanza: bool = True, level: str = "warn"
    ) -> str:
        try:
            return await self._run(server, options, stanza=stanza, level=level)
        except ProgramError as error:
            raise translated(error, doing) from error

    async def _followed(self, server: str, options: Sequence[str], doing: str, shown: Callable[[int], None]) -> None:
        """Run it to its end; `shown` is told the percentage from another thread."""
        argv, secrets = self._argv(server, options, "detail"), await self._environment(server)
        with Program.start(argv, secrets=secrets, account=self._account, cwd=Path("/"), stdout=True) as program:
            end = asyncio.get_running_loop().run_in_executor(None, _follow, program, shown)
            try:
                await asyncio.shield(end)
            except asyncio.CancelledError:
                program.kill()
                await asyncio.gather(end, return_exceptions=True)
                raise
            except ProgramError as error:
                raise translated(error, doing) from error


def _notes(annotations: Mapping[str, str]) -> list[str]:
    return [f"--annotation={key}={value}" for key, value in annotations.items()]


def _take(queue: Path, names: Sequence[str], into: Path) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # beside it lies why; `fetch` will say that
            (queue / name).rename(into / name)


def _follow(program: Program, shown: Callable[[int], None]) -> None:
    if program.stdout is not None:
        for line in program.stdout:
            if found := _PERCENT.search(line):
                shown(int(found[1]))
    program.check(QUICK)
