"""Steps that point an application at a server and ask it how it is."""

from __future__ import annotations

import operator
import shlex
from datetime import timedelta
from typing import Literal

from pydantic import Field

from actions.contract import Probe, Step
from actions.errors import PermanentError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.site import DatabaseRef, SecretRef
from actions.steps import byhand

PAUSE = timedelta(seconds=2)

PATIENCE = timedelta(minutes=2)
"""From ready pods to an application that answers."""


class Repoint(Step):
    """One key of a ConfigMap names another database host."""

    kind: Literal["repoint"] = "repoint"
    timeout: timedelta = timedelta(minutes=2)
    undo_on_failure: bool = True
    cluster: str
    namespace: str
    config_map: str
    key: str
    value_before: str
    value: str

    @property
    def summary(self) -> str:
        return f"Set `{self.key}` of ConfigMap `{self.namespace}/{self.config_map}` to `{self.value}`"

    @property
    def before(self) -> str:
        return f"`{self.key}` is `{self.value_before}`"

    @property
    def after(self) -> str:
        return f"`{self.key}` is `{self.value}`"

    def by_hand(self) -> tuple[str, ...]:
        body = {"data": {self.key: self.value}}
        return (byhand.merge_patch(self.cluster, self.namespace, f"configmap/{self.config_map}", body),)

    async def _found(self, ports: Ports) -> str | None:
        return (await ports.cluster.config(self.cluster, self.namespace, self.config_map)).get(self.key)

    async def probe(self, ports: Ports) -> Probe:
        found = await self._found(ports)
        if found == self.value:
            return Probe.DONE
        return Probe.TODO if found == self.value_before else Probe.UNKNOWN

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one call
        await self._set(ports, before=self.value_before, after=self.value)

    async def _set(self, ports: Ports, *, before: str, after: str) -> None:
        await ports.cluster.set_config(
            self.cluster, self.namespace, self.config_map, key=self.key, before=before, after=after
        )

    async def verify(self, ports: Ports) -> None:
        found = await self._found(ports)
        if found != self.value:
            raise VerificationError(f"ConfigMap `{self.config_map}` has `{self.key}` = `{found}`, not `{self.value}`.")

    async def undo(self, ports: Ports) -> None:
        found = await self._found(ports)
        if found == self.value_before:
            return
        if found != self.value:
            raise PermanentError(
                f"ConfigMap `{self.config_map}` has `{self.key}` = `{found}`, set by others. "
                f"Set it to `{self.value_before}` by hand."
            )
        await self._set(ports, before=self.value, after=self.value_before)

    def undo_by_hand(self) -> tuple[str, ...]:
        body = {"data": {self.key: self.value_before}}
        return (byhand.merge_patch(self.cluster, self.namespace, f"configmap/{self.config_map}", body),)


class CheckApplication(Step):
    """The application answers, and its own connection reaches the restored database."""

    kind: Literal["check_application"] = "check_application"
    timeout: timedelta = PATIENCE + timedelta(minutes=1)
    service: str
    target: DatabaseRef
    system_id: str
    old_oid: int | None
    connection: SecretRef | None  # None: not checked
    health_url: str | None
    # Where its connection leads from now on, when that is another place than the reference says; with a plan that was
    # signed before there was such a thing, it is left out.
    address: str = Field(default="", exclude_if=operator.not_)

    @property
    def summary(self) -> str:
        parts = []
        if self.connection is not None:
            to = f" to {self.address}" if self.address else ""
            parts.append(f"through its own database connection{to}")
        if self.health_url is not None:
            parts.append(f"at `{self.health_url}`")
        return f"Check `{self.service}` {' and '.join(parts)}"

    @property
    def after(self) -> str:
        return f"it works on the restored `{self.target}`"

    def by_hand(self) -> tuple[str, ...]:
        lines = []
        if self.connection is not None:
            host, separator, port = self.address.rpartition(":")
            there = f"host={host} port={port}" if separator else f"host={self.address}"
            at = f"  # with {there}" if self.address else ""
            lines.append(f"psql -X -d \"$APPLICATION_DSN\" -c 'SELECT current_database(), pg_is_in_recovery()'{at}")
        if self.health_url is not None:
            lines.append(shlex.join(["curl", "-fsS", "--max-time", "5", self.health_url]))
        return tuple(lines)

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a check leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        deadline = ports.clock.now() + PATIENCE
        while (complaint := await self._complaint(ports)) is not None:
            if ports.clock.now() >= deadline:
                raise VerificationError(f"The application `{self.service}` does not work: {complaint}")
            progress(ProgressReport(unit="steps", phase=complaint))
            await ports.clock.sleep(PAUSE)

    async def _complaint(self, ports: Ports) -> str | None:
        """None when all is well, else one sentence."""
        if self.connection is not None:
            complaint = await self._connection_complaint(ports, self.connection)
            if complaint is not None:
                return complaint
        return None if self.health_url is None else await ports.service.http(self.health_url)

    async def _connection_complaint(self, ports: Ports, connection: SecretRef) -> str | None:
        seen = await ports.service.connection(connection, at=self.address)
        if isinstance(seen, str):
            return seen
        facts = await ports.postgres.database(self.target)
        if facts is None:
            return f"database `{self.target}` is gone."
        if seen.system_id != self.system_id:
            return f"its connection reaches another server (system id {seen.system_id})."
        if seen.name != self.target.name or seen.oid != facts.oid or seen.oid == self.old_oid:
            return f"its connection reaches database `{seen.name}` (oid {seen.oid}), not the restored one."
        if seen.in_recovery:
            return "its connection reaches a standby, where nothing can be written."
        return None

    async def verify(self, ports: Ports) -> None:
        """`apply` is the check."""
