"""How the mirrors of manifests stand, for the status, the doctor and the alarms alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from actions.errors import DrError
from actions.manifests import MirrorState
from actions.ports import Ports
from actions.site import ManifestsPolicy
from actions.steps.phrases import moment, span

MISSED = 3
"""Looks that may fail before the mirror is late."""

TOLD = timedelta(days=1)
"""How long a rewritten history is told."""


@dataclass(frozen=True)
class Mirror:
    """One mirror. `problem` says why its state could not be read."""

    policy: ManifestsPolicy
    state: MirrorState | None = None
    problem: str = ""

    @property
    def subject(self) -> str:
        """What its alarms are about; never the same as a database's or a server's."""
        return f"manifests:{self.policy.name}"


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong with a mirror. `kind` stays the same while it is the same thing."""

    kind: str
    text: str
    hint: str


async def mirrors(ports: Ports) -> Sequence[Mirror]:
    """All of the plan, by name; what does not answer is told by its `problem`."""
    return await asyncio.gather(*(_mirror(ports, policy) for _, policy in sorted(ports.site.manifests.items())))


async def _mirror(ports: Ports, policy: ManifestsPolicy) -> Mirror:
    try:
        return Mirror(policy, await ports.manifests.state(policy.name))
    except DrError as error:
        return Mirror(policy, problem=str(error))


def mirror_trouble(mirror: Mirror, now: datetime) -> Iterator[Trouble]:
    """Everything that is wrong with it."""
    policy, state = mirror.policy, mirror.state
    name, again = policy.name, f"Look at it again: `/dr manifests mirror {policy.name}`."
    if mirror.problem:
        text = f"The mirror of manifests `{name}` cannot be read: {mirror.problem}"
        yield Trouble("unreadable", text, "Look whether the bucket answers, with `/dr doctor`.")
        return
    if state is None:
        yield Trouble("late-mirror", f"The manifests repository `{name}` has no mirror.", again)
        return
    age = now - state.checked_at
    if age > MISSED * policy.every:
        text = (
            f"The mirror of manifests `{name}` is {span(age)} old (of {moment(state.checked_at)}); "
            f"one look is due every {span(policy.every)}."
        )
        yield Trouble("late-mirror", text, f"Look for its run with `/dr status`. {again}")
    if state.gone:
        yield Trouble(
            "gone-branch",
            f"Branch `{policy.branch}` of `{policy.url}` is gone. The mirror keeps it as of `{state.head[:12]}`.",
            f"Find out who deleted it. `/dr manifests status` has the commands that give it back. {again}",
        )
    if state.rewrites and now - state.rewrites[0].seen_at < TOLD:
        last = state.rewrites[0]
        yield Trouble(
            "rewritten-history",
            f"The history of branch `{policy.branch}` of `{policy.url}` was rewritten: `{last.before[:12]}` was its "
            f"head and is no part of `{last.after[:12]}` (seen {moment(last.seen_at)}). The mirror keeps both.",
            "Ask who pushed with force. The old history is in the bundle of the first commit and in all later ones.",
        )
