"""The buttons of a run: orders, which are sent at once, and what is signed, which opens a form first
(`run_form`)."""

from __future__ import annotations

from bot.services.cards import PlanCard, PlanState, StepState
from bot.slack.views.blocks import Block, button, plain

PAUSE, RESUME, ABORT, STOP, AGAIN = "run.pause", "run.resume", "run.abort", "run.stop", "run.again"
HAPPENED, REPEAT, UNDO, SKIP = "run.happened", "run.repeat", "run.undo", "run.skip"
RETRY, UNDO_FINISHED = "run.retry", "run.undo_finished"

ORDERS = (PAUSE, RESUME, ABORT, STOP, AGAIN)
SIGNED = (HAPPENED, REPEAT, UNDO, SKIP, RETRY, UNDO_FINISHED)
"""Action ids are the names of the commands they stand for."""

TITLES = {
    HAPPENED: "It happened",
    REPEAT: "It did not",
    UNDO: "Abort and undo",
    SKIP: "Skip the step",
    RETRY: "Try again",
    UNDO_FINISHED: "Undo",
}


def buttons(card: PlanCard) -> list[Block]:
    """What can be done about the run of this card, the likeliest first."""
    if card.state is PlanState.RUNNING:
        return [
            button("Pause", PAUSE, card.token),
            _sure(button("Abort", ABORT, card.token), "End it after this step, and put back what it changed?"),
            _sure(
                button("Stop at once", STOP, card.token, style="danger"),
                "End the present step in the middle? The run then asks what to do.",
            ),
        ]
    if card.state is PlanState.PAUSED:
        return [
            button("Go on", RESUME, card.token, style="primary"),
            _sure(button("Abort", ABORT, card.token, style="danger"), "End it, and put back what it changed?"),
        ]
    if card.state is PlanState.ASKING:
        optional = any(step.optional and step.state is StepState.ASKING for step in card.steps)
        names = [HAPPENED, REPEAT, *([SKIP] if optional else []), UNDO]
        return [
            *(button(TITLES[name], name, card.token, style="danger" if name == UNDO else None) for name in names),
            button("Look again", AGAIN, card.token),
        ]
    if card.state in (PlanState.FAILED, PlanState.ABORTED, PlanState.PREEMPTED):
        return [button(TITLES[RETRY], RETRY, card.token)]
    return []


def _sure(made: Block, question: str) -> Block:
    made["confirm"] = {
        "title": plain("Are you sure?", 100),
        "text": plain(question, 300),
        "confirm": plain("Yes", 30),
        "deny": plain("Back", 30),
    }
    return made
