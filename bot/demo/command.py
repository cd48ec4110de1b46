"""`drbot demo`: a whole installation on this machine, with something to rescue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from actions.errors import DrError, UserError
from bot.demo.choices import Damage, Size

demo_app = typer.Typer(
    invoke_without_command=True, no_args_is_help=False, help="Live through an incident on this machine."
)


class Script(StrEnum):
    RESTORE = "restore"
    DELETION = "deletion"


@demo_app.callback()
def demo(
    context: typer.Context,
    size: Annotated[Size, typer.Option(help="tiny 14 MB, small 1 GB, large 3 GB, huge 10 GB.")] = Size.SMALL,
    script: Annotated[Script | None, typer.Option(help="Play the story without hands and end.")] = None,
    stays: Annotated[bool, typer.Option("--stay", help="Stay after the story, to look around, until Ctrl-C.")] = False,
    own_cluster: Annotated[
        bool, typer.Option("--own-cluster", help="Act on the cluster of KUBECONFIG, in a namespace made for it.")
    ] = False,
) -> None:
    """Start the demo and leave it with Ctrl-C. Everything is on 127.0.0.1 and gone afterwards."""
    if context.invoked_subcommand is not None:
        return
    from bot.demo import deletion, story
    from bot.demo.play import play
    from bot.demo.world import stay

    if own_cluster:
        from bot.demo.own_cluster import kubeconfig

        path = kubeconfig()
    else:
        path = None
        if os.environ.get("KUBECONFIG"):
            typer.echo("KUBECONFIG is left alone; with `--own-cluster` the demo acts on that cluster.")
    if script is None:
        raise typer.Exit(_run(stay(size, own_cluster=path)))
    told = deletion if script is Script.DELETION else story
    raise typer.Exit(_run(play(size, told.story, told.succeeded, own_cluster=path, stays=stays)))


@demo_app.command()
def damage(
    kind: Annotated[Damage, typer.Option(help="What goes wrong.")] = Damage.CORRUPT,
    demo: Annotated[Path | None, typer.Option(help="Folder of the demo; default: the newest that runs.")] = None,
) -> None:
    """Harm the production database of the running demo."""
    import psycopg

    from bot.demo import running
    from bot.demo.damage import do_damage

    found = running.find(demo)
    try:
        done = asyncio.run(do_damage(found.production_dsn, kind))
    except psycopg.Error as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Nothing was harmed, PostgreSQL refused: {reason}. Perhaps this harm is done already."
        ) from error
    typer.echo("Harm done to `superprismora`:")
    for line in done:
        typer.echo(f"  - {line}")
    typer.echo(f"What the application says now: {found.health_url}")
    scenario = "database_corruption" if kind is Damage.CORRUPT else "accidental_deletion"
    typer.echo(f"Next, in Slack as Olivia: /dr-incident open Users cannot sign in --scenario {scenario}")


def _run(work: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(work)
    except ExceptionGroup as group:
        # What is started side by side fails in a group; the first one is what a person can act on.
        known, other = group.split(DrError)
        if known is None or other is not None:
            raise
        raise _first(known) from group


def _first(group: ExceptionGroup[DrError]) -> DrError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
