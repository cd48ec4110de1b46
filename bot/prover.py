"""The prover: a process that carries out restore tests and nothing else, with keys of its own.

Where the plan file says `backups.prover: apart`, workers leave restore tests to it. It has the age identity of restore
tests, keys of the buckets that read (and write results alone), and the key that signs results; it has no credential of
production, no identity of restores, and no key that signs manifests. Whether that is really so is looked at from both
sides: the prover tries what it must not be able to do, and tells the doctor; the doctor tries the prover's own secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from actions.backup.catalogue import database_prefix
from actions.backup.crypto import Identity, signing_key
from actions.backup.proofs import Tested, proofs_folder
from actions.backup.signing import signed
from actions.catalog.proof import Prove
from actions.catalog.run import Retry, UndoFinished
from actions.contract import Finding, Verdict
from actions.errors import DrError, TemporaryError, UserError
from actions.ports import Clock, Ports, Secrets
from actions.steps.phrases import counted, names
from bot.plan_file import DrPlan, ProvenBy, is_reference
from storage import outbox, plans, processes, runs, timeline
from storage.runs import EVERY_RUN, Share
from storage.session import Database
from storage.tables import PlanRow, ProcessRow

log = structlog.get_logger()

ROLE = "prover"
TRIAL = "drbot-prover-trial"
EXAMINED_EVERY = timedelta(minutes=15)
LOOKED_EVERY = timedelta(seconds=10)
ALIVE = timedelta(seconds=30)

PROVING = Share(actions=(Prove.name,), again=(Retry.name, UndoFinished.name), others=False)
BESIDE_PROVING = Share(actions=PROVING.actions, again=PROVING.again)

SECRETS = (
    "admin_dsn", "kubeconfig", "database_check", "access_key", "secret_key", "identity", "signing_key", "username",
    "password", "push", "pager",
)  # fmt: skip
"""Keys of the plan file that name a secret a prover has no business with. The repository of pgBackRest is read with
the same references by both: what they resolve to is up to each process."""

OWN = ("prover_identity", "proof_signing_key", "prover_access_key", "prover_secret_key")
"""Those of the prover, which nobody else needs."""

NO_PROVER = (
    "It waits for a prover: the plan file says `backups.prover: apart`, and none has been seen lately. Start "
    "`drbot run --role prover` with its own keys (docs/howto/backups.md)."
)

_FINDINGS = TypeAdapter(tuple[Finding, ...])


def apart(plan: DrPlan) -> bool:
    """Whether workers leave restore tests to a prover."""
    return plan.backups.prover is ProvenBy.APART


def share_of_workers(plan: DrPlan) -> Share:
    """The runs that a worker looks after under this plan file."""
    return BESIDE_PROVING if apart(plan) else EVERY_RUN


# ------------------------------------------------------------ the prover of itself


class Examination:
    """What the prover finds when it looks at itself; told with each sign of life."""

    def __init__(self, plan: DrPlan, ports: Ports) -> None:
        """`ports` as the prover has them."""
        self._plan = plan
        self._ports = ports
        self._findings: tuple[Finding, ...] = ()
        self.looked = asyncio.Event()
        """Set whenever there is something to tell anew; whoever tells it clears it."""

    def notes(self) -> Mapping[str, Any]:
        """For the row of this process."""
        return {ROLE: _FINDINGS.dump_python(self._findings, mode="json")}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self._findings = tuple(await self.look())
            self.looked.set()
            for finding in self._findings:
                if finding.verdict is not Verdict.OK:
                    log.warning("prover_not_apart", check=finding.check, detail=finding.detail)
            await asyncio.sleep(EXAMINED_EVERY.total_seconds())

    async def look(self) -> list[Finding]:
        """All findings. Tries to store a few bytes where it must not be able to."""
        found: list[Finding] = []
        for name, check in (
            ("own keys", self._own),
            ("other keys", self._foreign),
            ("identity and proof key", self._fitting),
            ("buckets", self._buckets),
        ):
            try:
                found += await check()
            except DrError as error:
                found.append(_warn(name, f"cannot be told: {error}", "Repair this; it is looked at again by itself."))
        return found

    async def _own(self) -> list[Finding]:
        lacking = await _unreadable(self._ports.secrets, dict(_named(self._plan, OWN)))
        found = [
            _stop("own keys", f"`{key}` cannot be read: {why}", "Give the prover what the reference names.")
            for key, why in lacking.items()
        ]
        return found or [_ok("own keys", "are there")]

    async def _foreign(self) -> list[Finding]:
        own = dict(_named(self._plan, OWN))
        others = {key: ref for key, ref in _named(self._plan, SECRETS) if ref not in own.values()}
        readable = await _readable(self._ports.secrets, others)
        if not readable:
            return [_ok("other keys", f"can read none of {counted(len(others), 'secret')} that are not its own")]
        return [
            _stop(
                "other keys",
                f"can read {names(readable)}, which a restore test has no business with",
                "Run the prover under an account, and with an environment, that have its own keys alone.",
            )
        ]

    async def _fitting(self) -> list[Finding]:
        """That its keys are those that the plan file means."""
        found = []
        tested: dict[str, Tested] = {f"backup of `{name}`": each for name, each in self._ports.site.physical.items()}
        tested |= {f"dump of `{name}`": each for name, each in self._ports.site.backups.items()}
        for what, policy in sorted(tested.items()):
            ref = policy.identity  # as the prover sees it
            public = Identity(await self._ports.secrets.resolve(ref), ref).public_keys
            if not set(public) & set(policy.recipients):
                detail = f"`{ref}` opens no {what}: its public key is not among `backups.recipients`"
                found.append(_stop("identity", detail, "Add it there; new backups can then be tested."))
            ref = policy.proof_signing_key
            signer, _ = signed(b"", signing_key(await self._ports.secrets.resolve(ref), ref))
            if signer not in policy.proof_signers:
                detail = f"nobody believes `{ref}`: its public key is not among `backups.proof_signers`"
                found.append(_stop("proof key", detail, f"Add `{signer}` there."))
        return list(dict.fromkeys(found))

    async def _buckets(self) -> list[Finding]:
        found, tried = [], []
        for bucket, places in sorted(self._places().items()):
            try:
                await self._ports.objects.list(bucket, places[0])
            except UserError as error:
                found.append(_stop(f"bucket {bucket}", str(error), "Give its key the right to list and to read."))
                continue
            tried.append(bucket)
            found += [finding for place in places for finding in await self._tried(bucket, f"{place}{TRIAL}")]
        if tried and not found:
            found.append(_ok("buckets", f"can read {names(tried)}, and store or delete nothing there but results"))
        return found

    async def _tried(self, bucket: str, key: str) -> list[Finding]:
        """What it can do with a key that nobody uses: nothing, it should be."""
        objects = self._ports.objects
        done = []
        if not await _refused(objects.put(bucket, key, b"")):
            done.append("store")
        if not await _refused(objects.delete(bucket, key)):
            done.append("delete")
        return [
            _stop(
                f"bucket {bucket}",
                f"can {' and '.join(done)} `{key}`, and a restore test only reads there",
                "Take the right to write and to delete off `prover_access_key`, and remove that object if it is left.",
            )
        ] * bool(done)

    def _places(self) -> dict[str, list[str]]:
        """Where the backups are that it reads, by bucket; results of tests are stored elsewhere."""
        places: dict[str, set[str]] = {}
        for policy in self._ports.site.physical.values():
            results = proofs_folder(policy)
            for bucket in {*policy.base_buckets, *policy.wal_buckets, policy.open_bucket} - {""}:
                tried = (policy.prefix, f"{policy.prefix}base/", f"{policy.prefix}wal/")
                places.setdefault(bucket, set()).update(place for place in tried if not place.startswith(results))
        for dumped in self._ports.site.backups.values():
            allowed, kept = proofs_folder(dumped), {dumped.prefix, database_prefix(dumped)}
            places.setdefault(dumped.bucket, set()).update(place for place in kept if not place.startswith(allowed))
        return {bucket: sorted(found) for bucket, found in places.items()}


async def _refused(call: Awaitable[None]) -> bool:
    """Whether the store refuses what a key may not do. Whatever else goes wrong is raised: it proves nothing."""
    try:
        await call
    except UserError:
        return True
    return False


# ------------------------------------------------------------ the others of the prover


async def prover_findings(plan: DrPlan, rows: Sequence[ProcessRow], secrets: Secrets) -> list[Finding]:
    """What a doctor beside a worker can tell: whether a prover is there, what it says of itself, and whether this
    process could take its place."""
    there = [row for row in rows if ROLE in row.roles.split(",")]
    if not apart(plan):
        idle = "runs, and the plan file leaves restore tests to workers"
        hint = "Set `backups.prover: apart` in the plan file, or stop it."
        return [_warn("process prover", idle, hint)] if there else []
    if not there:
        hint = "Start `drbot run --role prover` with its own keys (docs/howto/backups.md)."
        found = [_stop("process prover", "no restore test is carried out", hint)]
    else:
        found = [_ok("process prover", f"{len(there)} alive")]
    found += [item for row in there for item in _said(row)]
    readable = await _readable(secrets, dict(_named(plan, OWN)))
    if readable:
        detail = f"this process can read {names(readable)}, which the prover alone should"
        hint = "Take them away from the account and the environment of every process but the prover."
        found.append(_stop("keys of the prover", detail, hint))
    else:
        found.append(_ok("keys of the prover", "cannot be read by this process"))
    return found


def _said(row: ProcessRow) -> Iterator[Finding]:
    host = row.id.rsplit("-", 2)[0]
    try:
        findings = _FINDINGS.validate_python(row.notes.get(ROLE, ()))
    except ValidationError:
        findings = ()
    if not findings:
        yield _warn(f"prover on {host}", "has not looked at itself yet", "Ask the doctor again in a minute.")
    for finding in findings:
        yield finding.model_copy(update={"check": f"prover on {host}: {finding.check}"})


class NobodyProves:
    """In each worker: says on its card why a restore test does not start, and in its channel that nobody carries one
    on."""

    def __init__(self, database: Database, clock: Clock, *, on_call: str, lease: timedelta) -> None:
        self._database, self._clock, self._on_call, self._lease = database, clock, on_call, lease

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except DrError as error:
                log.warning("provers_not_looked_for", error=str(error))
            await asyncio.sleep(LOOKED_EVERY.total_seconds())

    async def look(self) -> None:
        """Tell of the tests that wait while no prover is alive."""
        async with self._database.session() as session:
            alive = await processes.alive(session, within=ALIVE)
            if any(ROLE in row.roles.split(",") for row in alive):
                return
            for run in await runs.awaiting(session, plan_schema=_ANY, share=PROVING):
                row = await plans.get(session, run.id)
                if row is not None and await runs.waits(session, run.id, message=NO_PROVER):
                    await outbox.add(session, "plan", row.channel, ref=run.id)
            for run_id in await runs.orphaned(session, plan_schema=_ANY, lease=self._lease, share=PROVING):
                row = await plans.get(session, run_id)
                if row is not None:
                    await self._left(session, row)

    async def _left(self, session: AsyncSession, row: PlanRow) -> None:
        """Said once for a run: its prover has fallen silent, and there is no other."""
        text = (
            f"Run {row.id} ({row.action}) stands still: its prover has fallen silent, and no other one is there. Start "
            "`drbot run --role prover`; it goes on by itself."
        )
        new = await timeline.add(
            session,
            incident_id=row.incident_id,
            kind="run",
            actor="drbot",
            occurred_at=self._clock.now(),
            text=text,
            data={"plan": row.id},
            source_key=f"no-prover/{row.id}",
        )
        if new:
            await outbox.add(session, "text", row.channel or self._on_call, payload={"text": text})


_ANY = 2**31 - 1


# ------------------------------------------------------------ secrets of a plan file


def _named(plan: DrPlan, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every reference under one of these keys, by its dotted path."""
    return _walk("", plan.model_dump(mode="json"), frozenset(keys))


def _walk(path: str, value: object, keys: frozenset[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if key in keys and isinstance(item, str) and is_reference(item):
                yield inner, item
            else:
                yield from _walk(inner, item, keys)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(f"{path}[{number}]", item, keys)


async def _readable(secrets: Secrets, refs: Mapping[str, str]) -> list[str]:
    """Those of the keys whose reference has a value here. Raises TemporaryError when their keeper is silent."""
    lacking = await _unreadable(secrets, refs)
    return [key for key in refs if key not in lacking]


async def _unreadable(secrets: Secrets, refs: Mapping[str, str]) -> dict[str, str]:
    """Those of the keys whose reference has no value here, and why."""
    found: dict[str, str] = {}
    for key, ref in refs.items():
        try:
            await secrets.resolve(ref)
        except TemporaryError:
            raise
        except DrError as error:
            found[key] = str(error)
    return found


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, detail=detail)


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)
