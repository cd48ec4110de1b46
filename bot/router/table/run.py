"""Orders to runs, and plans about them."""

from __future__ import annotations

from actions.site import Frozen
from bot.router import params
from bot.router.entry import CommandKind, Entry


def _order(word: str, summary: str) -> Entry:
    """Without a name it is the only run that is open."""
    example = f'dr run {word} k7m2n3p4q5 --reason "the vendor is on the phone"'
    return Entry(
        ("run", word),
        f"run.{word}",
        CommandKind.ORDER,
        summary,
        example,
        params.OptionalRun,
        ("run",),
        usage="[RUN] [--reason TEXT]",
    )


def _about_run(word: str, summary: str, takes: type[Frozen]) -> Entry:
    """A plan about another run."""
    example = f'dr run {word} k7m2n3p4q5 --reason "looked at it with psql" --target superprismora'
    name, step = f"run.{word.replace('-', '_')}", takes is params.Answer
    usage = f'[RUN] {"[STEP] " if step else ""}--reason "WHY" [--target NAME]'
    return Entry(
        ("run", word),
        name,
        CommandKind.PLAN,
        summary,
        example,
        takes,
        ("run", "step") if step else ("run",),
        usage=usage,
    )


ROWS: tuple[Entry, ...] = (
    _order("pause", "Pause a run once its present step is done"),
    _order("resume", "Let a paused run go on"),
    _order("abort", "End a run once its present step is done, and put back what it changed"),
    _order("stop", "End the present step of a run at once; the run then asks"),
    _order("again", "Have a run that asks look at its unclear step again"),
    _about_run("happened", "Answer a run that asks: it has happened, go on", params.Answer),
    _about_run("repeat", "Answer a run that asks: it has not happened, do it again", params.Answer),
    _about_run("undo", "Answer a run that asks: abort, and undo what was done", params.Answer),
    _about_run("skip", "Answer a run that asks: leave out its optional step", params.Answer),
    _about_run("leave", "Answer a run that asks: end here, leave everything as it stands", params.Answer),
    _about_run("retry", "Try a failed run again after its cause was repaired", params.OptionalRun),
    _about_run("undo-finished", "Undo the finished steps of a run that is over", params.OptionalRun),
)
