"""From words to commands: one table for Slack, the command line and help.

`/dr-backup run superprismora`, `/dr backup run superprismora` and `drbot backup run superprismora` are the same row.
A new command is a row in `table/<noun>.py`, what it takes a class in `params.py`.
"""

from bot.router.entry import BREAK_GLASS, HUB, SLASHES, Command, CommandKind, Entry
from bot.router.parsing import RESTORE_FORM, Router
from bot.router.table import TABLE

__all__ = [
    "BREAK_GLASS",
    "HUB",
    "RESTORE_FORM",
    "SLASHES",
    "TABLE",
    "Command",
    "CommandKind",
    "Entry",
    "Router",
]
