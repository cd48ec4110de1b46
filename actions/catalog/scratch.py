"""Scratch instances: which there are, started again, and removed before their time."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from actions.backup.physical import ScratchFacts, ScratchState
from actions.contract import Action, Lock, Observation, Plan, Precondition, Query, Report, Risk, Step
from actions.errors import UserError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.moments import exact
from actions.steps.phrases import counted, size
from actions.steps.restore_scene import check_step
from actions.steps.scratch import CheckScratch, DiscardScratch, StartScratch
from actions.steps.scratch_facts import ScratchIs
from actions.steps.standby import replayed, standby_finding, state_words
from actions.steps.standing import known


class NoParams(Frozen):
    """All of them."""


class ScratchList(Query[NoParams]):
    """Every scratch instance of this machine, the newest first."""

    name: ClassVar[str] = "scratch.list"
    summary: ClassVar[str] = "List the scratch instances: which moment each shows, its state, when it goes"
    params = NoParams

    async def read(self, params: NoParams, ports: Ports) -> Report:  # noqa: ARG002 - there is nothing to choose
        found = sorted(await ports.scratch.instances(), key=lambda facts: facts.made_at, reverse=True)
        counting = [facts for facts in found if facts.state is not ScratchState.PROMOTED]
        budget, taken = ports.site.scratch, sum(facts.bytes for facts in counting)
        servers = len(found) - len(counting)
        return Report(
            title=f"{counted(len(counting), 'scratch instance')} of {budget.instances}",
            lines=(
                f"{size(taken)} of {size(budget.disk)}."
                + (f" Beside them {counted(servers, 'promoted one')}, which no budget counts." if servers else ""),
                "`/dr-restore DATABASE --at TIME` makes one, `/dr-restore discard ID` removes one.",
            ),
            findings=tuple(
                standby_finding(facts, facts.following, ports.clock.now())
                for facts in found
                if facts.following is not None
            ),
            columns=("id", "server", "shows", "state", "size", "kept until"),
            rows=tuple(
                (facts.id, facts.server, _shown(facts), _state(facts), size(facts.bytes), _until(facts))
                for facts in found
            ),
        )


def _state(facts: ScratchFacts) -> str:
    return facts.state if facts.following is None else state_words(facts, facts.following)


def _until(facts: ScratchFacts) -> str:
    if facts.state is ScratchState.PROMOTED:
        return "for good, a server of its own"
    return exact(facts.expires_at) if facts.following is None else "discarded"


def _shown(facts: ScratchFacts) -> str:
    if facts.following is not None:
        return f"replayed {replayed(facts.following)}"
    if facts.loaded is not None:
        return f"dump `{facts.loaded.backup}`, for a restore test"
    if facts.restored is None:
        return "nothing, its restore did not end"
    reached = facts.restored.reached_at
    return str(facts.restored.target) if reached is None else exact(reached)


class ScratchParams(Frozen):
    """Which instance, by its id."""

    scratch: str = Field(min_length=1)


class ScratchStart(Action[ScratchParams]):
    """A stopped instance runs again, paused where it was."""

    name: ClassVar[str] = "scratch.start"
    summary: ClassVar[str] = "Start a scratch instance, paused and read only; look again at what failed its check"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = ScratchParams
    steps: ClassVar[tuple[type[Step], ...]] = (StartScratch, CheckScratch)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ScratchIs,)

    async def plan(self, params: ScratchParams, ports: Ports, plan_id: str) -> Plan:
        facts = await known(ports, params.scratch)
        if facts.loaded is not None:
            raise UserError(f"`{facts.name}` holds a dump for a restore test, which starts and removes it by itself.")
        if facts.restored is None or facts.state is ScratchState.BROKEN:
            raise UserError(f"The restore of `{facts.name}` did not end well. Make it again with `/dr-restore`.")
        if facts.following is not None:
            raise UserError(
                f"`{facts.name}` follows the archive: its worker starts it by itself. Where it does not, `/dr doctor` "
                f"says why; `/dr-restore halt {facts.id} --at TIME` ends it at a moment."
            )
        checks = _checks(ports, facts)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Start scratch instance `{facts.name}`" + (", then look through it" if checks else ""),
            risk=self.risk,
            target=facts.id,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{facts.id}"),),
            steps=(StartScratch(scratch=facts.id), *checks),
            preconditions=(ScratchIs.of(facts, promoted=True, stays=True),),
            made_at=ports.clock.now(),
            observations=_observations(facts),
        )


def _checks(ports: Ports, facts: ScratchFacts) -> tuple[CheckScratch, ...]:
    """Of each database of the plan file whose check has failed; of all where there was none. A promoted one shows no
    moment any more."""
    if facts.state is ScratchState.PROMOTED:
        return ()
    return tuple(
        check_step(database, key, scratch=facts.id, table=facts.checks[key].table if key in facts.checks else "")
        for key, database in sorted(ports.site.databases.items())
        if database.server == facts.server
        if not facts.checks or (key in facts.checks and facts.checks[key].problem)
    )


class ScratchDiscard(Action[ScratchParams]):
    """An instance gone, its room free. A promoted one is a server of its own and is never removed."""

    name: ClassVar[str] = "scratch.discard"
    summary: ClassVar[str] = "Stop a scratch instance and remove its files; it can be made again"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = ScratchParams
    steps: ClassVar[tuple[type[Step], ...]] = (DiscardScratch,)

    async def plan(self, params: ScratchParams, ports: Ports, plan_id: str) -> Plan:
        facts = await known(ports, params.scratch)
        if facts.state is ScratchState.PROMOTED:
            raise UserError(
                f"`{facts.name}` was promoted: it is a server of its own, which nothing here removes. "
                "Stop it and remove its folder by hand once nothing uses it."
            )
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Remove scratch instance `{facts.name}`, {size(facts.bytes)}",
            risk=self.risk,
            target=facts.id,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{facts.id}"),),
            steps=(DiscardScratch(scratch=facts.id, mark=facts.mark),),
            made_at=ports.clock.now(),
            observations=_observations(facts),
        )


def _observations(facts: ScratchFacts) -> tuple[Observation, ...]:
    return (
        Observation(name="shows", value=_shown(facts)),
        Observation(name="state", value=_state(facts)),
        Observation(name="kept until", value=_until(facts)),
    )
