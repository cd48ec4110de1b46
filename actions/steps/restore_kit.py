"""The way back without the bot, kept beside the backups: a program, and a page that says how it is used.

<prefix>restore/<UTC time>-<hash>/restore.py, RESTORE.md   each written once: under an Object Lock nothing is replaced
<prefix>restore/<UTC time>-<hash>/kit.json                 signed, written last; the newest one counts
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files

from pydantic import AwareDatetime

from actions.backup.crypto import signing_key
from actions.backup.physical import PhysicalEntry
from actions.backup.signing import Signed
from actions.contract import Finding, Verdict
from actions.engines import engine_of
from actions.errors import DrError, VerificationError
from actions.ports import ObjectFacts, Ports
from actions.site import BackupPolicy, Frozen, PhysicalPolicy, SecretRef, Site
from actions.steps.kit_page import PAGE, PROGRAM, page
from actions.steps.phrases import moment

log = logging.getLogger(__name__)

KIT = "kit.json"
NAMED = "%Y%m%dT%H%M%SZ"  # how a folder's name begins

KEPT_FOR = timedelta(days=30)
KEPT_AT_LEAST = 7
"""A page is written after every full backup. Those that are older than that go, but for so many of the newest."""


class RestoreKit(Frozen):
    """What is signed."""

    format: int = 1
    made_at: AwareDatetime
    files: Mapping[str, str]  # name -> SHA-256, hex


@dataclass(frozen=True)
class KitPlace:
    """One prefix of a bucket that backups are under."""

    bucket: str
    prefix: str
    signing_key: SecretRef
    trusted_signers: tuple[str, ...]

    @property
    def folder(self) -> str:
        return f"{self.prefix}restore/"

    def __str__(self) -> str:
        return f"{self.bucket}/{self.folder}"


@dataclass(frozen=True)
class KitState:
    """What lies there. `problem` says why it is of no use, or not of as much as it could be."""

    place: KitPlace
    folder: str = ""
    kit: RestoreKit | None = None
    problem: str = ""
    silent: bool = False  # the bucket did not answer, so nobody knows


def kit_places(site: Site) -> Sequence[KitPlace]:
    """Beside every dump, base backup and segment that its program can read."""
    found: dict[tuple[str, str], KitPlace] = {}
    readable = [policy for policy in site.physical.values() if engine_of(policy).read_by_kit]
    places = [_place(policy, policy.bucket) for policy in site.backups.values()]
    places += [_place(policy, bucket) for policy in readable for bucket in (*policy.base_buckets, *policy.wal_buckets)]
    for place in places:
        found.setdefault((place.bucket, place.prefix), place)
    return [found[key] for key in sorted(found)]


def _place(policy: BackupPolicy | PhysicalPolicy, bucket: str) -> KitPlace:
    return KitPlace(bucket, policy.prefix, policy.signing_key, policy.trusted_signers)


def program() -> bytes:
    """The program, as this version has it."""
    return files("actions.byhand").joinpath(PROGRAM).read_bytes()


async def kit_states(ports: Ports) -> Sequence[KitState]:
    """Of every place. Raises nothing: a bucket that does not answer is a problem of its place."""
    return await asyncio.gather(*(_state(ports, place) for place in kit_places(ports.site)))


async def _state(ports: Ports, place: KitPlace) -> KitState:
    try:
        found = await _newest(ports, place)
    except DrError as error:
        return KitState(place, problem=str(error), silent=True)
    if found is None or found.kit is None:
        return found or KitState(place, problem="there is none")
    if found.kit.files.get(PROGRAM) != _sha256(program()):
        return KitState(place, found.folder, found.kit, "its program is of another version of the bot")
    return found


async def _newest(ports: Ports, place: KitPlace) -> KitState | None:
    """The newest that is whole and signed; else why the newest is not; None where there is nothing at all."""
    folders: dict[str, dict[str, ObjectFacts]] = defaultdict(dict)
    for facts in await ports.objects.list(place.bucket, place.folder):
        folder, _, name = facts.key.removeprefix(place.folder).partition("/")
        folders[folder][name] = facts
    spoiled: KitState | None = None
    for folder in sorted((folder for folder, names in folders.items() if KIT in names), reverse=True):
        key = f"{place.folder}{folder}/"
        try:
            return KitState(place, key, await _read(ports, place, key))
        except VerificationError as error:
            spoiled = spoiled or KitState(place, problem=str(error))
    return spoiled


async def _read(ports: Ports, place: KitPlace, folder: str) -> RestoreKit:
    body = await ports.objects.get(place.bucket, f"{folder}{KIT}")
    kit = Signed[RestoreKit].parse(body, place.trusted_signers, what=f"`{folder}{KIT}`")
    for name, sha256 in kit.files.items():
        facts = await ports.objects.head(place.bucket, f"{folder}{name}")
        there = b"" if facts is None else await ports.objects.get(place.bucket, f"{folder}{name}")
        if _sha256(there) != sha256:
            raise VerificationError(f"`{folder}{name}` is not what was stored: it was changed or removed.")
    return kit


async def place_kits(ports: Ports) -> Sequence[str]:
    """Write it where there is none like this one; the folders that were written. What is there is never changed; of the
    old ones of our own those go that are long superseded, once the new one was read back."""
    places = kit_places(ports.site)
    if not places:
        return ()
    wanted = {PROGRAM: program(), PAGE: page(ports.site, await _catalogues(ports)).encode()}
    hashes = {name: _sha256(body) for name, body in wanted.items()}
    written = []
    for place in places:
        try:
            found = await _newest(ports, place)
            if found is None or found.kit is None or found.kit.files != hashes:
                folder = await _write(ports, place, wanted, hashes)
                written.append(f"{place.bucket}/{folder}")
                await _read(ports, place, folder)
                await _expire(ports, place)
        except DrError as error:
            log.warning("restore_kit_not_placed: %s: %s", place, error)
    return written


async def _expire(ports: Ports, place: KitPlace) -> None:
    """Remove what is older than `KEPT_FOR`, each with its `kit.json` last, so that a removal that was broken off is
    gone on with. What nobody of ours has signed is left to people."""
    folders: dict[str, set[str]] = defaultdict(set)
    for facts in await ports.objects.list(place.bucket, place.folder):
        folder, _, name = facts.key.removeprefix(place.folder).partition("/")
        folders[folder].add(name)
    ours = sorted(folder for folder, names in folders.items() if KIT in names and _made_at(folder) is not None)
    for folder in ours[:-KEPT_AT_LEAST]:
        made, key = _made_at(folder), f"{place.folder}{folder}/"
        if made is None or ports.clock.now() - made <= KEPT_FOR:
            continue
        try:
            body = await ports.objects.get(place.bucket, f"{key}{KIT}")
            kit = Signed[RestoreKit].parse(body, place.trusted_signers, what=f"`{key}{KIT}`")
            for name in (*sorted(kit.files), KIT):
                await ports.objects.delete(place.bucket, f"{key}{name}")
        except DrError as error:
            log.warning("old_restore_kit_left: %s%s: %s", place.bucket, key, error)


def _made_at(folder: str) -> datetime | None:
    """None where it is not named as we name one."""
    try:
        return datetime.strptime(folder.partition("-")[0], NAMED).replace(tzinfo=UTC)
    except ValueError:
        return None


async def _catalogues(ports: Ports) -> Mapping[str, Sequence[PhysicalEntry]]:
    found: dict[str, Sequence[PhysicalEntry]] = {}
    for server in sorted(ports.site.physical):
        try:
            found[server] = await ports.physical.catalogue(server)
        except DrError as error:
            log.warning("restore_kit_without_newest: %s: %s", server, error)
    return found


async def _write(ports: Ports, place: KitPlace, wanted: Mapping[str, bytes], hashes: Mapping[str, str]) -> str:
    key = signing_key(await ports.secrets.resolve(place.signing_key), place.signing_key)
    now = ports.clock.now()
    kit = RestoreKit(made_at=now, files=hashes)
    name = _sha256("".join(hashes[each] for each in sorted(hashes)).encode())[:12]
    folder = f"{place.folder}{now.astimezone(UTC):{NAMED}}-{name}/"
    for each, body in wanted.items():
        await ports.objects.put(place.bucket, f"{folder}{each}", body)
    await ports.objects.put(place.bucket, f"{folder}{KIT}", Signed[RestoreKit].sign(kit, key).body())
    return folder


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# ---------------------------------------------------------------- words


def kit_words(state: KitState) -> str:
    """What is told of one that is good."""
    made = "" if state.kit is None else f", of {moment(state.kit.made_at)}"
    return f"The way back without the bot lies in `{state.place.bucket}/{state.folder}`{made}."


def kit_trouble(state: KitState) -> str:
    """What is wrong; empty where nothing is."""
    if not state.problem:
        return ""
    return (
        f"Beside the backups in `{state.place}` the way back without the bot is not as it should be: {state.problem}."
    )


KIT_HINT = (
    "A worker writes it within the hour, and after every full backup: look at its log, and whether the bucket's keys "
    "may write there."
)


async def kit_findings(ports: Ports) -> list[Finding]:
    """For the doctor."""
    return [
        Finding(check="restore kit", verdict=Verdict.WARN, detail=kit_trouble(state), hint=KIT_HINT)
        if state.problem
        else Finding(check="restore kit", verdict=Verdict.OK, detail=kit_words(state))
        for state in await kit_states(ports)
    ]
