"""What the attacks are after: an action that starts a job, and an executor that counts how often it was asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from actions.contract import Action, Kinds, Lock, Plan, Precondition, Probe, Query, Risk, Step
from actions.errors import UserError
from actions.ports import Executor, JobKind, JobPhase, JobSpec, JobState, Ports, Progress
from actions.site import Frozen

TARGET = "superprismora"


class CountingExecutor(Executor):
    """Starts nothing. `moved` is the world's change between the signing and the run."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.moved = False
        self.unclear = False

    async def start(self, spec: JobSpec) -> None:
        self.starts.append(spec.name)

    async def find(self, name: str) -> JobState | None:
        return JobState(phase=JobPhase.SUCCEEDED) if name in self.starts else None

    async def wait(self, name: str, progress: Progress) -> JobState:
        return JobState(phase=JobPhase.SUCCEEDED)

    async def cancel(self, name: str) -> None:
        return None

    async def forget(self, name: str) -> None:
        return None

    async def problems(self) -> Sequence[str]:
        return ()


def counting(ports: Ports) -> CountingExecutor:
    executor = ports.executor
    assert isinstance(executor, CountingExecutor)
    return executor


class Unmoved(Precondition):
    """The world is as it was when people signed."""

    kind: str = "attack.unmoved"

    @property
    def summary(self) -> str:
        return "The primary is still where it was"

    async def violation(self, ports: Ports) -> str | None:
        return "The primary has moved to another server." if counting(ports).moved else None


class StartJob(Step):
    """One job of the counting executor."""

    kind: str = "attack.job"
    job: str

    @property
    def summary(self) -> str:
        return f"Start {self.job}"

    def by_hand(self) -> tuple[str, ...]:
        return (f"drbot job {self.job}",)

    async def probe(self, ports: Ports) -> Probe:
        if counting(ports).unclear:
            return Probe.UNKNOWN
        return Probe.TODO if await ports.executor.find(self.job) is None else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.executor.start(JobSpec(name=self.job, kind=JobKind.LOAD, request={}))

    async def verify(self, ports: Ports) -> None:
        return None


class LaunchParams(Frozen):
    """As the command `restore` gives them."""

    database: str
    backup: str | None = None
    before: str | None = None
    instance_suspect: bool = False


class Catalogue:
    """One action under the name of a real one, so that it is asked for by the real command."""

    QUERIES: tuple[type[Query[Any]], ...] = ()

    def __init__(self) -> None:
        self.risk = Risk.DESTRUCTIVE
        self.steps = 1
        self.summary = "Start the jobs"

    def action(self, name: str, /) -> Action[Any]:
        if name != Launch.name:
            raise UserError(f"There is no action `{name}`.")
        return Launch(self)

    def query(self, name: str, /) -> Query[Any]:
        raise AssertionError(f"nobody asks for {name} here")

    def kinds(self) -> Kinds:
        return Kinds(steps={"attack.job": StartJob}, preconditions={"attack.unmoved": Unmoved})


class Launch(Action[LaunchParams]):
    name: ClassVar[str] = "restore.dump"
    summary: ClassVar[str] = "Start a job"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    recovers: ClassVar[bool] = True
    params = LaunchParams
    steps: ClassVar[tuple[type[Step], ...]] = (StartJob,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (Unmoved,)

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def least_risk(self, plan: Plan) -> Risk:
        return self._catalogue.risk

    async def plan(self, params: LaunchParams, ports: Ports, plan_id: str) -> Plan:
        if params.database != TARGET:
            ports.site.database(params.database)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=self._catalogue.summary,
            risk=self._catalogue.risk,
            target=TARGET,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"database:{plan_id}"),),
            preconditions=(Unmoved(),),
            steps=tuple(StartJob(job=f"{plan_id}-{number}") for number in range(self._catalogue.steps)),
            made_at=ports.clock.now(),
        )
