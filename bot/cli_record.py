"""`drbot timeline` and `drbot record`: the log checked from outside, exported, and taken up after a restore."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actions.errors import UserError
from bot.cli_sign import Key, person_of, proven
from bot.terminal import say

if TYPE_CHECKING:  # they are slow to import
    from bot.services.statements import Proof, Statement
    from bot.settings import Settings

Export = Annotated[Path | None, typer.Argument(help="An export as JSON Lines; without it the database is read.")]
Url = Annotated[str, typer.Option(help="The bot's database. Default: DATABASE_URL.", envvar="DATABASE_URL")]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        help="A witness: a file, a folder, s3://bucket/folder/, or a line copied from a channel. Several may be given."
    ),
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", help="The public key of the record, in base64. May be given several times.")
]
Accepted = Annotated[
    list[int] | None,
    typer.Option(help="An epoch whose start is right: you have asked who gave up the past before it, and why."),
]
Signers = Annotated[
    Path | None, typer.Option(exists=True, help="Whose keys count for that, as an allowed_signers file of OpenSSH.")
]
Reason = Annotated[str, typer.Option(help="Why the database has another past than the witnesses, for the record.")]
Endpoint = Annotated[str | None, typer.Option(help="Address of the store of s3://, for stores other than AWS.")]


def register(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Hang the commands into the command line."""
    timeline = typer.Typer(no_args_is_help=True, help="The record as a log: check it, export it.")
    record = typer.Typer(no_args_is_help=True, help="The sealed record and its witnesses.")
    app.add_typer(timeline, name="timeline")
    app.add_typer(record, name="record")

    @timeline.command()
    def verify(
        export: Export = None,
        database: Url = "",
        checkpoints: Checkpoints = None,
        key: Keys = None,
        endpoint: Endpoint = None,
        accept_epoch: Accepted = None,
        signers: Signers = None,
    ) -> None:
        """Check an export or the database against the checkpoints of witnesses. Needs no running bot. Exit code 1 when
        something was edited, reordered, removed or added, and the first bad entry is named; also when a past was given
        up by `drbot record adopt`, unless its epoch is accepted here and two persons of `--signers` have signed it."""
        if export is not None and not export.exists():
            raise UserError(f"There is no file `{export}`; export one with `drbot timeline export FILE`.")
        if accept_epoch and signers is None:
            raise UserError(
                "Give `--signers FILE`, the allowed_signers of the persons you trust (`drbot proofs` writes one): an "
                "epoch is accepted with the signatures of two of them."
            )
        acceptance = (tuple(accept_epoch or ()), signers)
        good, lines = _verified(export, database, checkpoints or [], key or [], endpoint, acceptance)
        say("\n".join(lines))
        if not good:
            raise typer.Exit(1)

    @timeline.command("export")
    def export_log(file: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")]) -> None:
        """Write the whole log as JSON Lines, for `drbot timeline verify`."""
        from bot import bootstrap

        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UserError(f"`{file}` cannot be written: {error.strerror}. Name a new file.") from error
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            count = asyncio.run(bootstrap.export_log(settings(), stream.write))
        say(f"{count} entries in {file}.")

    @record.command()
    def adopt(reason: Reason, key: Key = None) -> None:
        """Go on after the bot's database was restored from a backup: two persons sign with their keys which past is
        given up, and every plan signed before is void."""
        from bot import bootstrap

        own = settings()
        person = person_of(own)

        async def prove(words: str, said: Statement) -> Proof:
            say(words)
            return await proven(said, key or own.key)

        say(asyncio.run(bootstrap.adopt(own, person, reason, prove)))


def _verified(
    export: Path | None,
    url: str,
    sources: list[str],
    keys: list[str],
    endpoint: str | None,
    acceptance: tuple[tuple[int, ...], Path | None],
) -> tuple[bool, list[str]]:
    import psycopg

    from bot.verify import adoption, checkpoints, database, findings
    from bot.verify import export as exports
    from bot.verify.sources import NoCheckpointsError
    from bot.verify.sources import checkpoints as lines_of

    if sources and not keys:
        raise UserError(
            "Give the record's public key with `--key`; without it anybody could have made the checkpoints."
        )
    verdict = findings.Verdict()
    if not sources:
        verdict.notes.append("No witness was named: a truncated, rebuilt or restored log would not be noticed.")
    try:
        trusted = [checkpoints.public_key(key) for key in keys]
        lines = (line for source in sources for line in lines_of(source, endpoint=endpoint))
        witnessed = checkpoints.read(lines, trusted, verdict, adoption.Acceptance(*acceptance))
        if sources and not witnessed.claims:
            found = "".join(f" {bad.text}" for bad in verdict.bad[:3])
            raise UserError(f"No checkpoint there is signed with this key; check `--checkpoints` and `--key`.{found}")
        if export is not None:
            exports.verify(export, witnessed, trusted, verdict)
        elif url:
            database.verify(url, witnessed, verdict)
        else:
            raise UserError("Name an export, or the bot's database with `--database`.")
    except ValueError as error:
        raise UserError("`--key` is not an Ed25519 public key: give 32 bytes in base64.") from error
    except (NoCheckpointsError, exports.NoExportError, adoption.NoProgramError) as error:
        raise UserError(str(error)) from error
    except psycopg.Error as error:
        raise UserError(f"The database cannot be read: {str(error).strip()}.") from error
    return verdict.good, list(verdict.lines())
