"""The steps that give Secrets back out of the sealed copy of a recovery point, and keep those that they replace."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from actions.contract import Kept, Precondition, Probe, Step
from actions.errors import PermanentError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.secret_copies import SecretsNow
from actions.site import Frozen
from actions.steps import byhand
from actions.steps.phrases import names


class Returning(Frozen):
    """One Secret: what it holds now, and what it is to hold. Fingerprints, never values."""

    name: str  # "Secret main/shop/database"
    content: str
    version_before: str = ""  # empty: there is none
    content_before: str = ""

    @property
    def namespace(self) -> str:
        return self.name.split("/")[1]

    @property
    def short(self) -> str:
        """`shop/database`."""
        return self.name.partition(" ")[2].partition("/")[2]


class Sealed(Frozen):
    """Where a sealed copy is, for a custodian."""

    copy_id: str
    bucket: str
    endpoint: str | None
    key: str

    def opened(self, cluster: str, secret: Returning, verb: str) -> tuple[str, str]:
        """The commands that give one of it to the cluster; its values are in a pipe alone."""
        fetch = byhand.aws(self.endpoint, "s3", "cp", f"s3://{self.bucket}/{self.key}", "secrets.age")
        namespace, name = secret.short.split("/", 1)
        chosen = f'select(.metadata.namespace == "{namespace}" and .metadata.name == "{name}")'
        given = byhand.kubectl(cluster, namespace, verb, "-f", "-")
        return fetch, f"age -d -i \"$AGE_IDENTITY_FILE\" secrets.age | jq '.items[] | {chosen}' | {given}"


class KeepSecrets(Step):
    """What is replaced later is kept first: sealed, in escrow, for as long as the policy keeps what is there."""

    kind: Literal["keep_secrets"] = "keep_secrets"
    cluster: str
    sealed: Sealed
    secrets: tuple[Returning, ...]
    requested_by: str = ""
    recipients: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)  # likewise

    @property
    def summary(self) -> str:
        what = names(each.short for each in self.secrets)
        return f"Keep {what} of cluster `{self.cluster}` as they are now, sealed as `{self.sealed.copy_id}` in escrow"

    @property
    def before(self) -> str:
        return f"no sealed copy `{self.sealed.copy_id}`"

    @property
    def after(self) -> str:
        return "the present values encrypted to the recipients of the escrow; the cluster as it was"

    @property
    def keeps(self) -> Kept:
        where = f"s3://{self.sealed.bucket}/{self.sealed.key}"
        title = (
            f"Secrets {names(each.short for each in self.secrets)} of `{self.cluster}`, sealed before they are replaced"
        )
        return Kept(key=f"secrets:{self.cluster}:{self.sealed.copy_id}", title=title, location=where)

    def by_hand(self) -> tuple[str, ...]:
        reads = [
            byhand.kubectl(self.cluster, each.namespace, "get", "secret", each.short.split("/", 1)[1], "-o", "json")
            for each in self.secrets
        ]
        to = " ".join(f"-r {shlex.quote(each)}" for each in self.recipients) or "-R recipients.txt"
        encrypt = f"age {to} > {self.sealed.copy_id}.age"
        target = f"s3://{self.sealed.bucket}/{self.sealed.key}"
        # What the server numbers is taken out: it would refuse the copy for it later.
        numbers = ", ".join(f".metadata.{key}" for key in ("resourceVersion", "uid", "creationTimestamp"))
        bare = f"map(del({numbers}, .metadata.managedFields))"
        which = () if self.recipients else ("# recipients.txt: `escrow.recipients` of the plan file, one a line",)
        return (
            *which,
            f'({"; ".join(reads)}) | jq -s \'{{apiVersion: "v1", kind: "List", items: {bare}}}\' | {encrypt}',
            byhand.aws(self.sealed.endpoint, "s3", "cp", f"{self.sealed.copy_id}.age", target),
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if await self._problem(ports) == "" else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - it takes a moment
        wanted = [each.name for each in self.secrets]
        await ports.secret_copies.seal(self.sealed.copy_id, self.cluster, wanted, requested_by=self.requested_by)

    async def verify(self, ports: Ports) -> None:
        problem = await self._problem(ports)
        if problem != "":
            raise VerificationError(problem or f"There is no sealed copy `{self.sealed.copy_id}`. Try again.")

    async def undo(self, ports: Ports) -> None:
        """The cluster was not changed; what was kept stays."""

    async def undone(self, ports: Ports) -> None:
        """What was kept stays."""

    async def _problem(self, ports: Ports) -> str | None:
        """Empty when it holds what was looked at, None when there is none, else what is wrong with it."""
        entry = await ports.secret_copies.find(self.cluster, self.sealed.copy_id)
        if entry is None:
            return None
        kept = {each.name: each.version for each in entry.manifest.secrets}
        for each in self.secrets:
            if entry.problem is None and kept.get(each.name) != each.version_before:
                return f"`{each.name}` was written since it was looked at. Plan again."
        return entry.problem or ""


class ReturnSecrets(Step):
    """Secrets hold what they held at the recovery point; each one is written over nothing, or over what was kept."""

    kind: Literal["return_secrets"] = "return_secrets"
    undo_on_failure: bool = True
    cluster: str
    sealed: Sealed
    secrets: tuple[Returning, ...]
    kept: Sealed | None = None  # what is replaced, sealed before
    # Left out where there is none: a plan that was signed before they were read again keeps its digest.
    exposed_since: AwareDatetime | None = Field(default=None, exclude_if=lambda since: since is None)
    exposures: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)  # that were known to the signers

    @property
    def summary(self) -> str:
        what = names(each.short for each in self.secrets)
        return f"Give Secret {what} back to cluster `{self.cluster}` out of sealed copy `{self.sealed.copy_id}`"

    @property
    def before(self) -> str:
        lost = [each.short for each in self.secrets if not each.version_before]
        other = [f"`{each.short}` at version {_number(each.version_before)}" for each in self._replaced]
        parts = [f"{names(lost)} not there"] if lost else []
        return "; ".join([*parts, *other])

    @property
    def after(self) -> str:
        return "the values of the point; labels and owners of what is there stay, other Secrets are not touched"

    @property
    def _replaced(self) -> tuple[Returning, ...]:
        return tuple(each for each in self.secrets if each.version_before)

    def by_hand(self) -> tuple[str, ...]:
        return _commands(self.sealed, self.cluster, self.secrets)

    async def probe(self, ports: Ports) -> Probe:
        now = await ports.secret_copies.current(self.cluster)
        states = {_state(now, each) for each in self.secrets}
        if Probe.UNKNOWN in states:
            return Probe.UNKNOWN
        return Probe.TODO if Probe.TODO in states else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        # Copies of databases may have taken hours since the run began.
        if self.exposed_since is not None and (new := await _exposed(ports, self.exposed_since, self.exposures)):
            raise VerificationError(new)
        now = await ports.secret_copies.current(self.cluster)
        if self.kept is not None and not await ports.secret_copies.whole(self.cluster, self.kept.copy_id):
            raise VerificationError(
                f"Sealed copy `{self.kept.copy_id}`, which keeps what would be replaced, is gone or was changed, so "
                "nothing more is replaced. Look who writes to the bucket of the escrow, then plan again."
            )
        for number, each in enumerate(self.secrets, start=1):
            if _state(now, each) is not Probe.DONE:
                await ports.secret_copies.give_back(
                    self.cluster, self.sealed.copy_id, each.name, over=each.version_before
                )
            progress(ProgressReport(done=number, total=len(self.secrets), unit="steps"))

    async def verify(self, ports: Ports) -> None:
        now = await ports.secret_copies.current(self.cluster)
        wrong = [each.short for each in self.secrets if _state(now, each) is not Probe.DONE]
        if wrong:
            raise VerificationError(f"{names(wrong)} of `{self.cluster}` does not hold what the point held.")

    async def undo(self, ports: Ports) -> None:
        """What was replaced gets back what it held. What was missing stays: it is in nobody's way."""
        now = await ports.secret_copies.current(self.cluster)
        for each in self._replaced:
            found = now.find(each.name)
            if found is not None and found.content == each.content_before:
                continue
            if found is None or found.content != each.content or self.kept is None:
                what = "was deleted" if found is None else "was written"
                raise PermanentError(
                    f"`{each.name}` {what} by somebody else since. Look who needs what; its value of before is "
                    f"sealed as `{self.kept.copy_id if self.kept else ''}`."
                )
            await ports.secret_copies.give_back(self.cluster, self.kept.copy_id, each.name, over=found.version)

    def undo_by_hand(self) -> tuple[str, ...]:
        return () if self.kept is None else _commands(self.kept, self.cluster, self._replaced, replace=True)

    async def undone(self, ports: Ports) -> None:
        now = await ports.secret_copies.current(self.cluster)
        for each in self._replaced:
            found = now.find(each.name)
            if found is None or found.content != each.content_before:
                raise VerificationError(f"`{each.name}` does not hold what it held before.")


class SecretCopyIs(Precondition):
    """The sealed copy holds what it held, and its signature still checks."""

    kind: Literal["secret_copy_is"] = "secret_copy_is"
    cluster: str
    copy_id: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Sealed copy `{self.copy_id}` of Secrets of `{self.cluster}` still verifies, SHA-256 {self.sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        entry = await ports.secret_copies.find(self.cluster, self.copy_id)
        if entry is None:
            return f"Sealed copy `{self.copy_id}` of Secrets of `{self.cluster}` is gone."
        if entry.problem is not None:
            return entry.problem
        if entry.manifest.sha256 != self.sha256:
            return f"Sealed copy `{self.copy_id}` was made anew."
        # By its bytes: a listing tells sizes alone, and by the time it is opened everything is stopped.
        if not await ports.secret_copies.whole(self.cluster, self.copy_id):
            return f"The object of sealed copy `{self.copy_id}` is not what was signed."
        return None


class SecretsAre(Precondition):
    """Nobody has written these Secrets since they were looked at."""

    spent: ClassVar[bool] = True
    kind: Literal["secrets_are"] = "secrets_are"
    cluster: str
    versions: Mapping[str, str]  # empty: it is not there

    @property
    def summary(self) -> str:
        said = [f"`{name}` {_words(version)}" for name, version in sorted(self.versions.items())]
        return "; ".join(said)

    async def violation(self, ports: Ports) -> str | None:
        now = await ports.secret_copies.current(self.cluster)
        for name, version in sorted(self.versions.items()):
            found = now.find(name)
            there = "" if found is None else found.version
            if there != version:
                return f"`{name}` {_words(there)} now, and it was planned for when it {_words(version, past=True)}."
        return None


class NotExposed(Precondition):
    """Nothing more has been recorded since that makes values of the point unsafe."""

    kind: Literal["not_exposed"] = "not_exposed"
    since: AwareDatetime
    known: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        more = "nothing more" if self.known else "nothing"
        return f"{more.capitalize()} on the timeline since the point tells of a breach or a rotation of credentials"

    async def violation(self, ports: Ports) -> str | None:
        return await _exposed(ports, self.since, self.known) or None


async def _exposed(ports: Ports, since: datetime, known: Sequence[str]) -> str:
    """The first thing recorded that nobody knew of when they signed; empty when there is none."""
    new = [each for each in await ports.runs.exposures_since(since) if each not in known]
    return f"{new[0]} Values of the point may be known to others, or be out of use. Plan again." if new else ""


def custodian(sealed: Sealed, cluster: str, secret: Returning) -> str:
    """One line by which a custodian gives it back."""
    verb = "replace" if secret.version_before else "create"
    return " && ".join(sealed.opened(cluster, secret, verb))


def _commands(sealed: Sealed, cluster: str, secrets: Sequence[Returning], *, replace: bool = False) -> tuple[str, ...]:
    lines: list[str] = []
    for each in secrets:
        lines += sealed.opened(cluster, each, "replace" if replace or each.version_before else "create")
    return tuple(dict.fromkeys(lines))


def _state(now: SecretsNow, each: Returning) -> Probe:
    found = now.find(each.name)
    if found is not None and found.content == each.content:
        return Probe.DONE
    there = "" if found is None else found.version
    return Probe.TODO if there == each.version_before else Probe.UNKNOWN


def _words(version: str, *, past: bool = False) -> str:
    is_now = "was" if past else "is"
    return f"{is_now} at version {_number(version)}" if version else f"{is_now} not there"


def _number(version: str) -> str:
    return version.partition(" of ")[0]
