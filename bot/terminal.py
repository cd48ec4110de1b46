"""What a person at a terminal is told and asked."""

from __future__ import annotations

import sys

import typer

from actions.errors import UserError
from bot.visible import visible_lines


def say(text: str) -> None:
    """Print it; no name, note or reason in it can steer the terminal."""
    typer.echo(visible_lines(text))


def hand_out(text: str) -> None:
    """Print a document: as it is stored where it goes into a file or a program, which checks it; else as `say` does."""
    typer.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=not text.endswith("\n"))


def asked(question: str, option: str) -> str:
    """Ask the person at the terminal. Raises UserError where nobody is."""
    if not sys.stdin.isatty():
        raise UserError(f"There is no terminal to ask at; give {option}.")
    return str(typer.prompt(question)).strip()
