"""`drbot wal`: the archiver of one database's server, made from the plan file. Needs no database of the bot."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

from actions.adapters.clock import SystemClock
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.adapters.wal_receiver import PostgresWal
from actions.backup.archiver import Archiver
from actions.backup.crypto import signing_key
from actions.backup.wal_spool import WalSpool
from actions.engines import engine_of
from actions.errors import UserError
from bot.plan_file import DrPlan
from bot.site import site_of


async def archive(
    plan: DrPlan, secrets: SecretReferences, database: str, directory: Path, *, open_every: timedelta
) -> None:
    """Archive the WAL of the server that this database is on, until SIGTERM or SIGINT. `directory` is its own disk.

    Raises UserError when the plan names no WAL for it, when the keys do not fit, or when another archiver runs.
    """
    site = await site_of(plan, SecretReferences())
    policy = site.physical_of(site.database(database).server)
    engine = engine_of(policy)
    if not engine.archived_by_us:
        raise UserError(
            f"The WAL of `{policy.server}` is not archived by `drbot wal`: the plan file gives it to "
            f"{engine.title}, and the server archives it by its `archive_command`. Stop this process."
        )
    key = signing_key(await secrets.resolve(policy.signing_key), policy.signing_key)
    objects = S3Store(site, secrets)
    source = PostgresWal(site, secrets, policy.server, policy.slot)
    spool = WalSpool(directory / policy.server)
    standbys = {name: PostgresWal(site, secrets, name, policy.slot) for name in policy.standbys}
    archiver = Archiver(source, objects, policy, spool, key, SystemClock(), standbys=standbys, open_every=open_every)
    work = asyncio.ensure_future(archiver.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        return
    finally:
        objects.close()
