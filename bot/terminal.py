"""What a person at a terminal is told and asked."""

from __future__ import annotations

import re
import sys

import typer

from actions.errors import UserError
from bot.visible import visible_lines

_HELP = re.compile(r"`/dr(?: help(?P<about> [a-z]+)?)?`")
_SLASH = re.compile(r"`/dr[- ](?=[a-z-]+[ `])")
"""Slash commands as the sentences of the product name them."""


def at_a_terminal(text: str) -> str:
    """The text with slash commands as they are typed here, in which no name, note or reason can steer the terminal."""
    text = _HELP.sub(lambda found: f"`drbot{found['about'] or ''} --help`", text)
    return visible_lines(_SLASH.sub("`drbot ", text))


def say(text: str) -> None:
    """Print it, for people at a terminal."""
    typer.echo(at_a_terminal(text))


def say_aside(text: str) -> None:
    """Print it where it does not mix with an answer that a program reads."""
    typer.echo(at_a_terminal(text), err=True)


def quote(text: str) -> None:
    """Print what somebody signs: as `say` does, but word for word."""
    typer.echo(visible_lines(text))


def hand_out(text: str) -> None:
    """Print a document: as it is stored where it goes into a file or a program, which checks it; else as `say` does."""
    typer.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=not text.endswith("\n"))


def asked(question: str, option: str) -> str:
    """Ask the person at the terminal. Raises UserError where nobody is."""
    if not sys.stdin.isatty():
        raise UserError(f"There is no terminal to ask at; give {option}.")
    return str(typer.prompt(question)).strip()
