"""The command line: `drbot run`, `drbot job`, `drbot doctor`, ... and the twin of every slash command.

What a command needs is imported inside it: a job must not wait for the import of Slack, nor `drbot sign` for that of
the plan file. The twins are made when one is asked for, or all are listed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from actions.errors import DrError
from bot import cli_evidence, cli_record, cli_sign
from bot.demo.command import demo_app
from bot.redaction import Mask
from bot.roles import TOGETHER, Role
from bot.terminal import at_a_terminal, hand_out, say, say_aside

if TYPE_CHECKING:
    from bot.settings import Settings

T = TypeVar("T")

GARBAGE = 50_000
"""So many new objects before the collector looks for cycles among them; they hold some megabytes at most."""


class _WithTwins(TyperGroup):
    """The commands below, and after them the twins of the slash commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_twins().commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or _twins().commands.get(cmd_name)


@cache
def _twins() -> TyperGroup:
    from bot.router import Router

    twins = typer.Typer(add_completion=False)
    twins.callback()(lambda: None)  # a group, however few there are
    for noun in Router().nouns():
        if noun not in ("help", "doctor", "review", "run"):
            _twin(twins, noun, "; ".join(entry.summary for entry in Router().entries(noun)))
    return typer.main.get_group(twins)


# Pretty tracebacks would show local variables, and so secrets.
app = typer.Typer(
    cls=_WithTwins,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs the disaster-recovery plan.",
)
plan_app = typer.Typer(no_args_is_help=True, help="The plan file.")
app.add_typer(plan_app, name="plan")
app.add_typer(demo_app, name="demo")

_mask = Mask()
"""Of this process, as its log and its standard error are."""


def main() -> None:
    """Entry point. Errors for people are one sentence on standard error and exit code 1."""
    # What the imports make stays. Looked through again and again for garbage, as by default, it takes a tenth longer.
    gc.set_threshold(GARBAGE)
    try:
        app()
    except ValueError as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        problems = "; ".join(str(item["msg"]) for item in error.errors(include_url=False, include_input=False))
        sys.exit(at_a_terminal(_mask(f"The settings do not fit: {problems}.")))
    except DrError as error:
        sys.exit(at_a_terminal(_mask(str(error))))
    finally:
        gc.freeze()  # the last search for garbage, of a process that ends anyway, takes longer than many a command


def _settings() -> Settings:
    from bot import logs
    from bot.settings import Settings

    settings = Settings()
    settings.hide_with(_mask)
    logs.configure(settings.log_format, _mask)
    return settings


cli_sign.register(app, _settings)
cli_record.register(app, _settings)


def _wait(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


TWIN = {"allow_extra_args": True, "ignore_unknown_options": True}
"""A twin takes its words as they are; the router understands them."""


@app.command(context_settings=TWIN)
def run(
    context: typer.Context,
    role: Annotated[
        list[Role] | None, typer.Option(help="Only these roles; all but `prover` when none is given.")
    ] = None,
) -> None:
    """Run the bot until SIGTERM. With words it is about one run: `drbot run pause RUN`, `abort`, `happened`, ..."""
    from bot import bootstrap

    if context.args:
        _at_the_counter("run", context.args)
        return

    settings = _settings()
    _wait(bootstrap.run(settings, role or list(TOGETHER)))


@app.command()
def job(
    spec: Annotated[Path, typer.Argument(help="The folder's spec.json, written by the executor.")],
    folder: Annotated[Path | None, typer.Option(help="For lock and result; default: the spec's.")] = None,
    message: Annotated[Path | None, typer.Option(help="File of the pod's termination message.")] = None,
) -> None:
    """Run one heavy step; progress is NDJSON on standard output, the result is written last."""
    from bot import world

    raise typer.Exit(_wait(world.job(_settings(), spec, folder=folder, message=message)))


@app.command()
def wal(database: Annotated[str, typer.Argument(help="A database of the plan; its whole server is archived.")]) -> None:
    """Bring the WAL of a database's server into the buckets, until SIGTERM. One for each server, on its own disk."""
    from bot import plan_file, world
    from bot import wal as archiver

    settings = _settings()
    plan = plan_file.load(settings.plan_file)
    directory = settings.data_directory.resolve() / "wal"
    every = timedelta(seconds=settings.wal_open_every_s)
    secrets = world.secret_references(settings, plan)
    _wait(archiver.archive(plan, secrets, database, directory, open_every=every))


@app.command()
def migrate() -> None:
    """Bring the bot's own database, its roles and their rights to this version, as the owner (DATABASE_URL)."""
    from bot import bootstrap

    _wait(bootstrap.migrate(_settings()))
    say("The bot's database is at the newest schema, and every role may do what it needs.")


@app.command()
def doctor(quick: Annotated[bool, typer.Option(help="Only what answers within a second.")] = False) -> None:
    """Check everything the bot needs, and say what is lost without it. Exit code 1 when something must be repaired."""
    from bot import bootstrap

    findings = _wait(bootstrap.doctor(_settings(), quick=quick))
    for finding in findings:
        hint = f" Next: {finding.hint}" if finding.hint else ""
        say(f"{finding.verdict.upper():5} {finding.check}: {finding.detail}{hint}")
    if any(finding.verdict == "stop" for finding in findings):
        raise typer.Exit(1)


@plan_app.command("check")
def plan_check(file: Annotated[Path | None, typer.Argument(help="Default: DRBOT_PLAN_FILE.")] = None) -> None:
    """Name every problem of the plan file with its line, its key and what would be right."""
    from actions import registry
    from bot import plan_file
    from bot.settings import Settings

    path = file or Settings().plan_file
    problems = plan_file.check(path, actions=registry.names())
    for problem in problems:
        say(str(problem))
    if any(problem.severity is plan_file.Severity.ERROR for problem in problems):
        raise typer.Exit(1)
    say(f"{path}: the plan can be used.")


@plan_app.command("activate")
def plan_activate(
    file: Path,
    reason: Annotated[str, typer.Option(help="Why; asked for when it is left out.")] = "",
    target: Annotated[str, typer.Option(help="`plan-` and the first eight digits of the file's hash.")] = "",
    sign: Annotated[Path | None, typer.Option(help="Your key. Default: DRBOT_KEY.")] = None,
) -> None:
    """Ask for a new version of the plan file to be put in force; two others must sign as well."""
    settings = _settings()
    _tell(*_wait(cli_sign.activate(settings, file, reason=reason, target=target, key=sign or settings.key)))


@plan_app.command("export")
def plan_export(file: Annotated[Path | None, typer.Argument(help="Write there instead of printing.")] = None) -> None:
    """Print the plan file that is in force."""
    from bot import bootstrap

    text = _wait(bootstrap.plan_in_force(_settings()))
    if file is None:
        hand_out(text)
    else:
        file.write_text(text)


@plan_app.command("schema")
def plan_schema() -> None:
    """Print the JSON Schema of the plan file."""
    from bot import plan_file

    typer.echo(json.dumps(plan_file.schema(), indent=2))


@plan_app.command("show")
def plan_show(plan_id: str) -> None:
    """Print a stored plan whole: steps, preconditions, commands by hand, signatures."""
    from bot import bootstrap

    say(_wait(bootstrap.show_plan(_settings(), plan_id)))


@app.command()
def manifest(
    output: Annotated[Path | None, typer.Option(help="Write there instead of printing.")] = None,
    url: Annotated[str | None, typer.Option(help="For HTTP mode: the address Slack reaches the bot at.")] = None,
) -> None:
    """Print the Slack app manifest, made from the commands the bot knows."""
    from bot.router import Router
    from bot.slack.manifest import manifest_text

    text = manifest_text(Router(), url=url)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text)


def _twin(twins: typer.Typer, noun: str, summary: str) -> None:
    @twins.command(noun, context_settings={**TWIN, "help_option_names": []}, help=summary)
    def command(context: typer.Context) -> None:
        _at_the_counter(noun, context.args)


def _at_the_counter(noun: str, words: list[str]) -> None:
    from bot.router import Router

    settings, router = _settings(), Router()
    said, key = cli_sign.split([noun, *words])
    command = router.parse_argv(said)
    if command.name == "help":  # also on the day the bot's database is away
        say(router.usage(noun))
    elif command.name == "incident.clear_suspect_slack":
        say(_wait(cli_sign.clear_suspicion(settings, command, key or settings.key)))
    elif cli_evidence.here(command):
        _tell(*_wait(cli_evidence.carry_out(settings, command)))
    elif command.break_glass or key is not None:
        _tell(*_wait(cli_sign.ask(settings, said, key or settings.key)))
    else:
        from bot import bootstrap

        person = cli_sign.person_of(settings)
        text, good = _wait(bootstrap.at_the_counter(settings, noun, list(words), person, say_aside))
        _tell(text, good, say_it=hand_out if "format" in command.params else say)


def _tell(text: str, good: bool, *, say_it: Callable[[str], None] = say) -> None:
    say_it(text)
    if not good:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
