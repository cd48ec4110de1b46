"""The form behind the buttons of a run whose click is a request: sending it is the first signature of a plan."""

from __future__ import annotations

from actions.site import Frozen
from bot.services.cards import PlanCard, StepState
from bot.slack.views.blocks import Block, View, context, escape, modal, section, text_input
from bot.slack.views.run_control import HAPPENED, REPEAT, RETRY, SKIP, TITLES, UNDO, UNDO_FINISHED
from bot.slack.views.signing import REASON, TYPED

FORM = "run.form"

_MEANING = {
    HAPPENED: "The step counts as done on the word of those who sign, and the run goes on.",
    REPEAT: "The step is done again, and the run goes on.",
    UNDO: "The run ends, and what was changed for it is put back.",
    SKIP: "The step is left out, and the run goes on.",
    RETRY: "The same plan again: what is done is found and not done again.",
    UNDO_FINISHED: "A new plan puts back the finished steps, newest first, as far as they can be.",
}


class Metadata(Frozen):
    """Which command for which run, and where the answer goes."""

    command: str
    run: str
    channel: str
    target: str = ""


def form(card: PlanCard, command: str, *, channel: str) -> View:
    """What the person asks for, with reason and, where the run's own rule asks for it, the typed target."""
    blocks: list[Block] = [section(escape(card.summary)), section(_MEANING[command])]
    if card.message:
        blocks.append(section(escape(card.message)))
    blocks += [
        section(f"*{step.number}.* {escape(step.summary)}") for step in card.steps if step.state is StepState.ASKING
    ]
    blocks.append(context("This becomes a plan with the risk of this run; the others sign it on its own message."))
    blocks.append(text_input(REASON, "Why, and what have you seen"))
    if card.typed_target:
        blocks.append(text_input(TYPED, "Name of the target", hint=f"Type exactly: {card.target}", limit=255))
    target = card.target if card.typed_target else ""
    metadata = Metadata(command=command, run=card.plan_id, channel=channel, target=target)
    return modal(
        TITLES[command], blocks, callback=FORM, submit="Request", close="Cancel", private=metadata.model_dump_json()
    )
