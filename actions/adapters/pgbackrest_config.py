"""pgBackRest's configuration, as far as it can be read on this machine: files, and what a command line says."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

_BUCKET = re.compile(r"repo(\d+)-(?:s3|gcs|azure)-(?:bucket|container)")
FILES = (Path("/etc/pgbackrest.conf"), Path("/etc/pgbackrest/pgbackrest.conf"))
INCLUDED = Path("/etc/pgbackrest/conf.d")
"""Read where no `--config` says otherwise. Source: pgBackRest's command reference, `config`, `config-include-path`."""


def buckets_of(config: str | None, stanza: str) -> Mapping[int, str]:
    """Repository -> its bucket. A repository of the stanza's own section wins."""
    found: dict[int, str] = {}
    sections = read(config)
    for section in ("global", stanza):
        for key, value in sections.get(section, {}).items():
            if match := _BUCKET.fullmatch(key):
                found[int(match[1])] = value
    return found


def said_to(command: str, option: str, *, config: str | None, stanza: str) -> str:
    """What an option is for this `archive_command`, as pgBackRest finds it: its words, then its environment, then the
    configuration file that it names, or else `config`. Empty where nothing says it, or the file cannot be read here."""
    words = _words(command)
    variable = f"PGBACKREST_{option.upper().replace('-', '_')}"
    if said := _option(words, option) or _variable(words, variable):
        return said
    config = _option(words, "config") or _variable(words, "PGBACKREST_CONFIG") or config
    stanza = _option(words, "stanza") or _variable(words, "PGBACKREST_STANZA") or stanza
    sections = read(config)
    places = (f"{stanza}:archive-push", stanza, "global:archive-push", "global")
    return next((sections[place][option] for place in places if option in sections.get(place, {})), "")


def read(config: str | None) -> Mapping[str, Mapping[str, str]]:
    """Section -> option -> value of this file, or of pgBackRest's own places; nothing of what cannot be read."""
    # pgBackRest repeats keys for lists and knows no interpolation.
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    for path in [Path(config)] if config else [*FILES, *sorted(INCLUDED.glob("*.conf"))]:
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _words(command: str) -> Sequence[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _option(words: Sequence[str], name: str) -> str:
    """The last one wins, in either of its two forms."""
    found = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{name}":
            found = after
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found


def _variable(words: Sequence[str], name: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")
