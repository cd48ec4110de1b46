"""The scripts that the written plan names: they say to the bot what the plan says, and end as it ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bot.router import Router

LATEST = {"server": None, "moment": "latest", "dump": None}
SCRIPTS = Path(__file__).parents[2] / "scripts"


def called(tmp_path: Path, script: str, *words: str, ends: int = 0) -> tuple[int, list[str]]:
    """The exit code, and the words that the program was given."""
    program = tmp_path / "drbot"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {ends}\n')
    program.chmod(0o755)
    ended = subprocess.run(
        [SCRIPTS / script, *words],
        env={**os.environ, "DRBOT": str(program)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return ended.returncode, ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("script", "words", "name", "params"),
    [
        ("test_restore.sh", ["--latest"], "backup.prove", LATEST),
        ("test_restore.sh", ["--dump", "shop"], "backup.prove", {**LATEST, "server": "shop", "dump": "newest"}),
        ("test_restore.sh", ["--random", "a b"], "backup.prove", {**LATEST, "server": "a b", "moment": "random"}),
        ("backup_database.sh", [], "backup.dump", {"database": "superprismora"}),
        ("backup_database.sh", ["shop"], "backup.dump", {"database": "shop"}),
    ],
)
def test_a_script_is_one_command_of_the_bot(
    tmp_path: Path, script: str, words: list[str], name: str, params: dict[str, object]
) -> None:
    code, said = called(tmp_path, script, *words)
    command = Router().parse_argv(said)

    assert code == 0
    assert (command.name, command.params) == (name, params)


@pytest.mark.parametrize("script", ["test_restore.sh", "backup_database.sh"])
def test_a_script_ends_as_the_bot_does_and_refuses_what_it_does_not_know(tmp_path: Path, script: str) -> None:
    assert called(tmp_path, script, ends=1)[0] == 1
    assert called(tmp_path, script, "--fast") == (2, [])
