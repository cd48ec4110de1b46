"""Every command, one module a noun. Help shows them in this order."""

from __future__ import annotations

from bot.router.entry import Entry
from bot.router.table import (
    app,
    backup,
    break_glass,
    drill,
    evidence,
    files,
    incident,
    manifests,
    point,
    restore,
    run,
    secrets,
    status,
)

TABLE: tuple[Entry, ...] = (
    *status.ROWS,
    *incident.ROWS,
    *backup.ROWS,
    *restore.ROWS,
    *drill.ROWS,
    *evidence.ROWS,
    *files.ROWS,
    *secrets.ROWS,
    *manifests.ROWS,
    *point.ROWS,
    *break_glass.ROWS,
    *app.ROWS,
    *run.ROWS,
)
