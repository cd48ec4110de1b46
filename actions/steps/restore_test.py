"""What restore tests of base backups and of dumps have in common: a job that makes a scratch instance, and its end."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from actions.backup.dump_test import DumpLoaded
from actions.backup.physical import Proof, ScratchFacts, ScratchRestored
from actions.backup.proofs import Proofs, Tested
from actions.contract import Probe
from actions.engines import engine_of
from actions.errors import DrError, UserError, VerificationError
from actions.ports import JobKind, JobPhase, JobState, Ports, Progress
from actions.site import BackupPolicy
from actions.steps.heavy import HeavyStep
from actions.steps.scratch import DiscardScratch, instance, not_here

log = logging.getLogger(__name__)


class ForTest(HeavyStep):
    """A scratch instance made by a job for a test. When it cannot be made, that is put on record as a failed test."""

    interruptible: ClassVar[bool] = True
    undo_on_failure: bool = True
    scratch: str
    mark: str

    @abstractmethod
    def policy(self, ports: Ports) -> Tested:
        """The policy of what is tested."""

    @abstractmethod
    def made(self, facts: ScratchFacts) -> bool:
        """Whether it holds what this test wants, whole."""

    @abstractmethod
    async def failed(self, ports: Ports, began: datetime, problem: str) -> Proof:
        """What is put on record of a test that got nowhere."""

    @property
    def job_kind(self) -> JobKind:
        return JobKind.PROVE

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the instance tells all
        if await passed(ports, self.policy(ports), self.scratch):
            return Probe.DONE  # tested, and perhaps removed already
        facts = await ports.scratch.find(self.scratch)
        if facts is None:
            return Probe.TODO
        if facts.mark != self.mark:
            return Probe.UNKNOWN  # somebody else's instance under our name
        return Probe.DONE if self.made(facts) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        began = ports.clock.now()
        try:
            await super().apply(ports, progress)
        except (VerificationError, UserError) as error:
            try:
                await keep(ports, self.policy(ports), await self.failed(ports, began, str(error)))
            except DrError as other:  # it must not stand in for what the test has found
                log.warning("failed_test_not_recorded: %s: %s", self.scratch, other)
            raise

    async def sweep(self, ports: Ports) -> None:
        await discard(ports, self.scratch, self.mark)

    async def verify(self, ports: Ports) -> None:
        if await passed(ports, self.policy(ports), self.scratch):
            return
        facts = await instance(ports, self.scratch)
        if facts.mark != self.mark or not self.made(facts):
            raise VerificationError(f"Scratch instance `{self.scratch}` was not restored. Look at the log of its job.")

    async def undo(self, ports: Ports) -> None:
        state = await ports.executor.find(self.job)
        if state is not None and state.phase is JobPhase.RUNNING:
            await ports.executor.cancel(self.job)
        await discard(ports, self.scratch, self.mark)

    def undo_by_hand(self) -> tuple[str, ...]:
        return ("pg_ctl stop -D FOLDER", "rm -r FOLDER")

    async def undone(self, ports: Ports) -> None:
        if await ports.scratch.find(self.scratch) is not None:
            raise VerificationError(f"Scratch instance `{self.scratch}` is still there. Remove its folder by hand.")
        state = await ports.executor.find(self.job)
        if state is not None and state.phase is JobPhase.SUCCEEDED and not await ports.scratch.removed(self.scratch):
            raise VerificationError(await not_here(ports, self.scratch))


class RemoveScratch(DiscardScratch):
    """The instance of a test goes at its end."""

    kind: Literal["remove_scratch"] = "remove_scratch"  # type: ignore[assignment]

    @property
    def before(self) -> str:
        return "a scratch instance that has served its purpose"

    @property
    def after(self) -> str:
        return "no scratch instance of this test"


def proof_of(
    facts: ScratchFacts,
    made: ScratchRestored | DumpLoaded,
    *,
    now: datetime,
    rpo: timedelta,
    checks: Mapping[str, str],
    problems: Sequence[str],
    known: Mapping[str, str],
) -> Proof:
    """What a test has measured and found: `made` into the instance by the job, looked through since."""
    return Proof(
        id=facts.id,
        server=facts.server,
        backup=made.backup,
        proven_at=now,
        rto=max(timedelta(0), now - facts.made_at),
        rpo=rpo,
        seconds=made.seconds,
        bytes=made.bytes,
        plain_bytes=made.plain_bytes,
        checks=checks,
        problem=f"{'; '.join(problems)}." if problems else None,
        tools=made.tools,
        known=known,
    )


async def passed(ports: Ports, policy: Tested, proof: str) -> bool:
    """Whether this restore test is on record as passed."""
    found = await Proofs(ports.objects, ports.secrets).find(policy, proof)
    return found is not None and found.problem is None


async def discard(ports: Ports, scratch: str, mark: str) -> None:
    """Remove the instance where it is there and carries this mark."""
    facts = await ports.scratch.find(scratch)
    if facts is not None and facts.mark == mark:
        await ports.scratch.discard(scratch, mark=mark)


async def keep(ports: Ports, policy: Tested, proof: Proof) -> None:
    """Sign it and store it where the others are."""
    beside = None if isinstance(policy, BackupPolicy) else engine_of(policy).proof_beside(policy, proof)
    await Proofs(ports.objects, ports.secrets).keep(policy, proof, beside=beside)
