"""The schema of the bot's own database, step by step, by alembic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST = "0009"
"""The revision that this version of the bot works with, which is the last one of `versions/`."""


def config() -> Config:
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    return made
