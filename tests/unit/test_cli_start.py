"""The command line starts without what a command does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = {
    "cli": ("bot.cli", {"psycopg", "sqlalchemy", "structlog", "pydantic_settings", "bot.router", "bot.plan_file"}),
    "job": ("bot.world", {"aiohttp", "alembic", "boto3", "kubernetes", "sqlalchemy", "slack_sdk"}),
    "front": ("bot.bootstrap", {"slack_bolt", "slack_sdk", "boto3", "kubernetes", "jinja2", "apscheduler", "alembic"}),
}


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_it_is_started_without(name: str) -> None:
    module, heavy = WITHOUT[name]
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert set(done.stdout.split()) & heavy == set()
