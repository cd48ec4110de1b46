"""The step that puts a version of the plan file in force, and the fact it rests on."""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import Literal

from actions.contract import Precondition, Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress


def short(sha256: str) -> str:
    """What people compare: the first eight digits of a version's hash."""
    return sha256[:8]


class VersionIs(Precondition):
    """Nobody has activated another version since the difference was shown."""

    kind: Literal["plan.version"] = "plan.version"
    sha256: str

    @property
    def summary(self) -> str:
        return f"Version {short(self.sha256)} of the plan file is still in force"

    async def violation(self, ports: Ports) -> str | None:
        found = await ports.plan_versions.active()
        if found == self.sha256:
            return None
        return f"version {short(found)} of the plan file is in force, not {short(self.sha256)}"


class ActivateVersion(Step):
    """The new version becomes the newest one; running processes go over to it."""

    kind: Literal["plan.activate"] = "plan.activate"
    timeout: timedelta = timedelta(minutes=1)
    plan_id: str
    document: str
    sha256: str
    sha256_before: str
    changes: tuple[str, ...]

    @property
    def summary(self) -> str:
        return f"Put version {short(self.sha256)} of the plan file in force ({len(self.changes)} change(s))"

    @property
    def before(self) -> str:
        return f"version {short(self.sha256_before)}"

    @property
    def after(self) -> str:
        return "\n".join([f"version {short(self.sha256)}:", *self.changes])

    def by_hand(self) -> tuple[str, ...]:
        values = f"('{self.sha256}', :'document' || E'\\n', '{self.plan_id}')"
        insert = f"INSERT INTO plan_version (sha256, document, plan_id) VALUES {values}"  # noqa: S608 - for people
        return (
            f"echo {shlex.quote(f'{self.sha256}  dr-plan.yml')} | sha256sum --check",
            f'echo {shlex.quote(insert)} | psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v document="$(cat dr-plan.yml)"',
        )

    async def probe(self, ports: Ports) -> Probe:
        found = await ports.plan_versions.active()
        if found == self.sha256:
            return Probe.DONE
        return Probe.TODO if found == self.sha256_before else Probe.UNKNOWN

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - done at once
        await ports.plan_versions.activate(self.document, plan=self.plan_id)

    async def verify(self, ports: Ports) -> None:
        found = await ports.plan_versions.active()
        if found != self.sha256:
            raise VerificationError(
                f"Version {short(found)} of the plan file is in force, not {short(self.sha256)}. "
                "Look at it with `drbot plan export`, then ask again."
            )
