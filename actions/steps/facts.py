"""Signed facts about the world, read again right before the first step."""

from __future__ import annotations

import operator
from typing import ClassVar, Literal, Self

from pydantic import Field

from actions.contract import Precondition
from actions.errors import UserError
from actions.ports import Ports, ServerFacts, WorkloadFacts
from actions.site import DatabaseRef, WorkloadRef
from actions.steps.known_backups import restorable
from actions.steps.phrases import names, size, version

CLOSED = (
    "Server `{}` was closed by a promotion: applications are on the server that took its place. Let its `admin_dsn` in "
    "the plan file name that one, then ask for a new plan."
)


async def closed_for_good(ports: Ports, server: str) -> bool:
    """Whether a promotion has fenced it. Who may not see that could not have done it either."""
    try:
        found = await ports.postgres.fencing(server)
    except UserError:
        return False
    return found.read_only and not found.open


class ServerIs(Precondition):
    """The server is the same cluster at the same place, goes on along the same timeline, and is writable."""

    kind: Literal["server_is"] = "server_is"
    server: str
    system_id: str
    # Left out of plans that were signed before they were told. A server that was set aside has the system id of the
    # one that replaced it: only where it is and its timeline id tell them apart.
    address: str = Field(default="", exclude_if=operator.not_)
    timeline_id: int = Field(default=0, exclude_if=operator.not_)
    version: int = Field(default=0, exclude_if=operator.not_)  # for people: a minor upgrade is no other server
    serves: bool = Field(default=False, exclude_if=operator.not_)  # no promotion has closed it for good

    @classmethod
    def of(cls, facts: ServerFacts, *, serves: bool = False) -> Self:
        """As it is now."""
        return cls(
            serves=serves,
            server=facts.name,
            system_id=facts.system_id,
            address=facts.address,
            timeline_id=facts.timeline_id,
            version=facts.version,
        )

    @property
    def summary(self) -> str:
        return f"Server `{self.server}` has system id {self.system_id} and is a primary{self._place}"

    @property
    def _place(self) -> str:
        at = f" at {self.address}" if self.address else ""
        return f"{at} on timeline id {self.timeline_id}" if self.timeline_id else at

    @property
    def acts_on(self) -> str:
        parts = [f"system id {self.system_id}", *([f"PostgreSQL {version(self.version)}"] if self.version else [])]
        return f"`{self.server}`, primary{self._place}, {', '.join(parts)}"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.postgres.server(self.server)
        if facts.system_id != self.system_id:
            return f"Server `{self.server}` has system id {facts.system_id}, signed was {self.system_id}."
        if facts.in_recovery:
            return f"Server `{self.server}` is a standby now; it cannot be written to."
        if self.address and facts.address != self.address:
            return f"Server `{self.server}` is at {facts.address} now, signed was {self.address}."
        if self.timeline_id and facts.timeline_id != self.timeline_id:
            return (
                f"Server `{self.server}` is on timeline id {facts.timeline_id} now, signed was {self.timeline_id}: "
                "another one was promoted."
            )
        return CLOSED.format(self.server) if self.serves and await closed_for_good(ports, self.server) else None


class DatabaseIs(Precondition):
    """The database is the same one, or is still missing."""

    kind: Literal["database_is"] = "database_is"
    target: DatabaseRef
    oid: int | None

    @property
    def summary(self) -> str:
        return f"Database `{self.target}` {self._state(self.oid)}"

    @staticmethod
    def _state(oid: int | None) -> str:
        return "does not exist" if oid is None else f"has oid {oid}"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.postgres.database(self.target)
        found = None if facts is None else facts.oid
        if found == self.oid:
            return None
        return f"Database `{self.target}` {self._state(found)}, signed was that it {self._state(self.oid)}."


class BackupIs(Precondition):
    """The backup is in the catalogue, byte for byte the signed manifest, and still checks."""

    kind: Literal["backup_is"] = "backup_is"
    database: str
    backup: str
    manifest_sha256: str

    @property
    def summary(self) -> str:
        return f"Backup `{self.backup}` still verifies, manifest SHA-256 {self.manifest_sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        entry = await restorable(ports, self.database, self.backup)
        if entry is None:
            return f"Backup `{self.backup}` is no longer in the catalogue."
        if entry.problem is not None:
            return f"Backup `{self.backup}` must no longer be used: {entry.problem}"
        if entry.manifest_sha256 != self.manifest_sha256:
            return f"The manifest of `{self.backup}` was changed since it was signed for."
        return None


class NamesFree(Precondition):
    """No database has these names yet."""

    spent: ClassVar[bool] = True
    kind: Literal["names_free"] = "names_free"
    server: str
    names: tuple[str, ...]

    @property
    def summary(self) -> str:
        return f"No database is called {names(self.names)} on `{self.server}`"

    async def violation(self, ports: Ports) -> str | None:
        taken = {facts.name for facts in await ports.postgres.databases(self.server)} & set(self.names)
        if not taken:
            return None
        return f"{names(sorted(taken))} exists on `{self.server}` now. Rename it, then ask for a new plan."


class DiskFree(Precondition):
    """At least so many bytes are free where the server says how many."""

    spent: ClassVar[bool] = True
    kind: Literal["disk_free"] = "disk_free"
    server: str
    at_least: int

    @property
    def summary(self) -> str:
        return f"Server `{self.server}` has {size(self.at_least)} of disk free"

    async def violation(self, ports: Ports) -> str | None:
        free = (await ports.postgres.server(self.server)).free_bytes
        if free is None or free >= self.at_least:
            return None
        return f"Server `{self.server}` has {size(free)} free, {size(self.at_least)} are needed."


class WorkloadIs(Precondition):
    """The workload is the same object, and whoever held its GitOps controller still does."""

    kind: Literal["workload_is"] = "workload_is"
    ref: WorkloadRef
    uid: str
    suspended: bool = Field(default=False, exclude_if=operator.not_)
    """Its controller was suspended already, so the plan does not suspend it."""

    @classmethod
    def of(cls, facts: WorkloadFacts) -> Self:
        return cls(ref=facts.ref, uid=facts.uid, suspended=facts.gitops is not None and facts.gitops.suspended)

    @property
    def summary(self) -> str:
        return f"{self.ref} is the object with uid {self.uid}" + (", its GitOps suspended" if self.suspended else "")

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.cluster.workload(self.ref)
        if facts is None:
            return f"{self.ref} is gone."
        if facts.uid != self.uid:
            return f"{self.ref} was made anew (uid {facts.uid})."
        if self.suspended and facts.gitops is not None and not facts.gitops.suspended:
            return f"GitOps of {self.ref} was resumed since and would undo the steps. A new plan suspends it."
        return None


class ConfigIs(Precondition):
    """A key of a ConfigMap has the value that will be replaced."""

    kind: Literal["config_is"] = "config_is"
    cluster: str
    namespace: str
    config_map: str
    key: str
    value: str

    @property
    def summary(self) -> str:
        return f"`{self.key}` of ConfigMap `{self.namespace}/{self.config_map}` is `{self.value}`"

    async def violation(self, ports: Ports) -> str | None:
        found = (await ports.cluster.config(self.cluster, self.namespace, self.config_map)).get(self.key)
        if found == self.value:
            return None
        return (
            f"`{self.key}` of ConfigMap `{self.namespace}/{self.config_map}` is `{found}`, signed was `{self.value}`."
        )


class ObjectIs(Precondition):
    """A stored object has the size that was seen."""

    kind: Literal["object_is"] = "object_is"
    bucket: str
    key: str
    bytes: int

    @property
    def summary(self) -> str:
        return f"Object `{self.key}` in bucket `{self.bucket}` has {self.bytes} bytes"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.objects.head(self.bucket, self.key)
        if facts is None:
            return f"Object `{self.key}` in bucket `{self.bucket}` is gone."
        return None if facts.bytes == self.bytes else f"Object `{self.key}` has {facts.bytes} bytes now."
