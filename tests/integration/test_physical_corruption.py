"""Damaged physical backups: each is found before any server is started, named in the sentence, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from actions.adapters.clock import SystemClock
from actions.adapters.postgres_physical import PhysicalPrograms
from actions.backup.crypto import Identity, Recipients
from actions.backup.manifest import StoredObject
from actions.backup.native_catalogue import BaseFolder
from actions.backup.packing import Packed, pack
from actions.backup.physical import BackupKind, BaseRequest, PhysicalManifest, RecoveryTarget
from actions.backup.signing import Signed
from actions.backup.unpacking import Plain, unpack
from actions.errors import TemporaryError, UserError, VerificationError
from actions.ports import no_progress
from tests.dump_world import Keys
from tests.fakes.s3 import MemoryObject, MemoryObjects
from tests.fixtures.physical import Past
from tests.fixtures.small_disk import small_disk
from tests.fixtures.waiting import until
from tests.physical_world import BUCKET, SERVER, PhysicalWorld
from tests.wal_world import UnsteadyObjects

pytestmark = [pytest.mark.integration, pytest.mark.corruption]

SMALL = 12 * 1024 * 1024  # bytes of a disk that has no room for the 30 MB of the server


@pytest.fixture
def world(past: Past, server_directory: Path) -> PhysicalWorld:
    return past.anew(server_directory)


def objects_of(world: PhysicalWorld) -> MemoryObjects:
    assert isinstance(world.objects, MemoryObjects)
    return world.objects


def change(world: PhysicalWorld, key: str, damage: Callable[[bytes], bytes]) -> None:
    bucket = objects_of(world).buckets[BUCKET]
    bucket[key] = MemoryObject(damage(bucket[key].body), bucket[key].modified_at)


def flipped(body: bytes) -> bytes:
    place = len(body) // 2
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


async def refused(
    world: PhysicalWorld, past: Past, match: str, *, kind: type[Exception] = VerificationError, backup: str = "quarter"
) -> str:
    """The restore is refused with this sentence; no server was started, nothing is left."""
    with pytest.raises(kind, match=match) as refusal:
        await world.restore(RecoveryTarget(time=past.commits[4].after), backup=backup)
    assert world.clean() == []
    assert await world.scratch.instances() == []
    return str(refusal.value)


@pytest.mark.parametrize("backup", ["full", "hour", "quarter"])
async def test_a_flipped_byte_in_any_member(past: Past, world: PhysicalWorld, backup: str) -> None:
    change(world, BaseFolder(world.policy, backup).base, flipped)
    assert f"`{backup}`" in await refused(world, past, "not what was stored")
    with pytest.raises(VerificationError, match=f"`{backup}`"):
        await world.engine.verify(SERVER, backup, no_progress)
    assert world.clean() == []


async def test_what_a_complete_reading_has_found_is_passed_over_by_every_restore_after_it(
    past: Past, world: PhysicalWorld
) -> None:
    """The size is right, so only who reads it all knows; nobody fetches gigabytes at night to learn it again."""
    change(world, BaseFolder(world.policy, "quarter").base, flipped)
    with pytest.raises(VerificationError, match="not what was stored"):
        await world.engine.verify(SERVER, "quarter", no_progress)
    problems = {entry.manifest.id: entry.problem for entry in await world.engine.catalogue(SERVER)}
    assert "not what was stored" in (problems.pop("quarter") or "")
    assert set(problems.values()) == {None}

    restored = await world.restore(RecoveryTarget(time=past.commits[4].after))
    assert restored.backup == "hour"
    [record] = [key for key in objects_of(world).buckets[BUCKET] if "/quarter/verified-" in key]
    with pytest.raises(VerificationError, match=f"Once its object was put right, remove `{record}`"):
        await world.engine.verify(SERVER, "quarter", no_progress)
    change(world, BaseFolder(world.policy, "quarter").base, flipped)  # back to what it was
    await world.objects.delete(BUCKET, record)
    assert (await world.engine.verify(SERVER, "quarter", no_progress)).problem is None


async def test_a_missing_member_is_told_for_all_that_rest_on_it(past: Past, world: PhysicalWorld) -> None:
    del objects_of(world).buckets[BUCKET][BaseFolder(world.policy, "hour").base]
    problems = {entry.manifest.id: entry.problem for entry in await world.engine.catalogue(SERVER)}
    assert problems["full"] is None
    assert problems["hour"] is not None
    assert "`base.age` of base backup `hour` is missing" in problems["hour"]
    assert "rests on backup `hour`" in (problems["quarter"] or "")
    await refused(world, past, "rests on backup `hour`, which must not be used")
    # Nobody has to name it: the newest that can be used is taken, and more WAL is replayed.
    restored = await world.restore(RecoveryTarget(time=past.commits[4].after))
    assert restored.backup == "full"


async def test_a_truncated_upload(past: Past, world: PhysicalWorld) -> None:
    change(world, BaseFolder(world.policy, "quarter").base, lambda body: body[:-100])
    await refused(world, past, "`quarter` in bucket `backups` has .* bytes, its manifest says")


@pytest.mark.parametrize(
    ("name", "match"),
    [("changed", "does not match its signature"), ("forged", "a key the plan file does not trust")],
)
async def test_a_forged_but_well_formed_manifest(past: Past, world: PhysicalWorld, name: str, match: str) -> None:
    """Whoever can write the bucket knows the recipients, and could store a server of his own making."""
    key = BaseFolder(world.policy, "quarter").manifest

    def forge(body: bytes) -> bytes:
        signed = Signed[PhysicalManifest].model_validate_json(body)
        document = signed.document.model_copy(update={"plain_sha256": "0" * 64})
        if name == "forged":
            return Signed[PhysicalManifest].sign(document, Keys().signing).body()
        return signed.model_copy(update={"document": document}).body()

    change(world, key, forge)
    await refused(world, past, match)
    (entry,) = [each for each in await world.engine.catalogue(SERVER) if each.manifest.id == "quarter"]
    assert (entry.trusted, entry.problem is not None) == (False, True)


async def test_a_flipped_byte_in_the_manifest(past: Past, world: PhysicalWorld) -> None:
    change(world, BaseFolder(world.policy, "quarter").manifest, flipped)
    assert "`quarter`" in await refused(world, past, "cannot be read|does not match its signature")


async def test_a_manifest_of_another_backup(past: Past, world: PhysicalWorld) -> None:
    bucket = objects_of(world).buckets[BUCKET]
    full = bucket[BaseFolder(world.policy, "full").manifest].body
    change(world, BaseFolder(world.policy, "quarter").manifest, lambda _: full)
    await refused(world, past, "belongs to `full`")


async def test_a_signed_object_with_a_damaged_file_inside(past: Past, world: PhysicalWorld) -> None:
    """A file that was damaged before it was hashed: only the server's own list of files tells. Combining would have
    laundered it."""
    folder = BaseFolder(world.policy, "full")
    plain = bytearray(await unpacked(world, "full"))
    place = plain.index(b"c4ca4238a0b923820dcc509a6f75849b")  # md5 of 1, in a page of the table
    plain[place] ^= 1
    packed, stored = await packed_anew(world, bytes(plain))
    change(world, folder.base, lambda _: stored)
    kept = StoredObject(bucket=BUCKET, key=folder.base, bytes=packed.stored_bytes, sha256=packed.stored_sha256)
    changes = {"stored": kept, "plain_bytes": packed.plain_bytes, "plain_sha256": packed.plain_sha256}
    change(world, folder.manifest, lambda body: signed_anew(world, body, **changes))
    said = await refused(world, past, "are not those that the server listed")
    assert "`full`" in said
    assert "checksum mismatch for file" in said


@pytest.mark.parametrize("part", ["stored", "plain"])
async def test_an_object_that_its_manifest_does_not_speak_of(past: Past, world: PhysicalWorld, part: str) -> None:
    """It opens, and all of it is well: whoever can write the bucket knows the recipients. Its hashes alone tell."""
    folder, other = BaseFolder(world.policy, "full"), "0" * 64

    def of_another(body: bytes) -> bytes:
        kept = Signed[PhysicalManifest].model_validate_json(body).document.stored
        changes = {"stored": kept.model_copy(update={"sha256": other})} if part == "stored" else {"plain_sha256": other}
        return signed_anew(world, body, **changes)

    change(world, folder.manifest, of_another)
    await refused(world, past, f"The {part} bytes of backup `full` do not have the size and SHA-256 of its manifest")


async def packed_anew(world: PhysicalWorld, plain: bytes) -> tuple[Packed, bytes]:
    """These bytes as a backup of them would be stored."""
    source, stored = iter([plain]), bytearray()

    async def store(chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            stored.extend(chunk)

    class Silent:
        def feed(self, block: bytes, /) -> None: ...

        def end(self) -> None: ...

    packed = await pack(
        *(lambda _: next(source, b""), lambda: None, lambda: None),
        recipients=Recipients(world.policy.recipients),
        store=store,
        local=None,
        watcher=Silent(),
        done=lambda _: None,
    )
    return packed, bytes(stored)


def signed_anew(world: PhysicalWorld, body: bytes, **changes: object) -> bytes:
    """The same manifest with changes, by a key that is trusted."""
    document = Signed[PhysicalManifest].model_validate_json(body).document
    return Signed[PhysicalManifest].sign(document.model_copy(update=changes), world.keys.signing).body()


async def unpacked(world: PhysicalWorld, backup: str) -> bytes:
    parts: list[bytes] = []

    class Keep:
        def run(self, source: Plain, /) -> None:
            while block := source.get():
                parts.append(block)

    chunks = world.objects.get_stream(BUCKET, BaseFolder(world.policy, backup).base)
    identity = Identity(world.keys.identity, world.policy.identity)
    await unpack(chunks, backup=backup, identity=identity, sink=Keep(), done=lambda _: None)
    return b"".join(parts)


async def test_a_server_that_runs_and_lets_nobody_in(
    past: Past, world: PhysicalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the catalogs that was damaged after every member was checked: page checksums are looked at only once
    the replay has come to rest, and nobody could ever ask whether it has."""
    combine = PhysicalPrograms.combine

    async def damaging(self: PhysicalPrograms, server: str, members: Sequence[Path], into: Path) -> None:
        await combine(self, server, members, into)
        pg_class = into / "base" / "5" / "1259"
        body = pg_class.read_bytes()
        pg_class.write_bytes(body[:100] + bytes([body[100] ^ 1]) + body[101:])

    monkeypatch.setattr(PhysicalPrograms, "combine", damaging)
    monkeypatch.setattr("actions.adapters.scratch_server.REFUSES", timedelta(seconds=1))
    await refused(world, past, "cannot be asked: .*invalid page in block 0 of relation .*Use another backup")


async def test_a_page_that_was_damaged_after_the_members_were_checked(
    past: Past, world: PhysicalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the check of every page, after the replay, can see it."""
    check = PhysicalPrograms.check_pages

    async def damaging(self: PhysicalPrograms, server: str, data: Path) -> bool:
        pg_class = data / "base" / "5" / "1259"
        body = pg_class.read_bytes()
        pg_class.write_bytes(body[:100] + bytes([body[100] ^ 1]) + body[101:])
        return await check(self, server, data)

    monkeypatch.setattr(PhysicalPrograms, "check_pages", damaging)
    await refused(world, past, "Pages of the restored server are damaged")


async def test_another_identity(past: Past, world: PhysicalWorld) -> None:
    # Before anything is claimed, for which there would be no room, and so before anything is fetched.
    other = replace(world, values={"IDENTITY": Keys().identity}, reserve=1 << 60)
    await refused(other, past, "cannot open backup `full`", kind=UserError)


async def test_a_damaged_segment_and_a_missing_one(past: Past, world: PhysicalWorld) -> None:
    bucket = objects_of(world).buckets[BUCKET]
    segments = sorted(key for key in bucket if "/wal/" in f"/{key}")
    change(world, segments[-1], flipped)
    name = Path(segments[-1]).name.removesuffix(".sealed")
    await refused(world, past, f"`{name}`")
    del bucket[segments[-2]]
    gone = Path(segments[-2]).name.removesuffix(".sealed")
    await refused(world, past, gone)


async def test_a_base_whose_own_wal_is_gone_is_not_counted_and_no_server_is_started_on_it(
    past: Past, world: PhysicalWorld
) -> None:
    """Its files are whole, so nothing but its own span of WAL tells that it can never become consistent."""
    bucket = objects_of(world).buckets[BUCKET]
    for key in [key for key in bucket if "/wal/" in f"/{key}"]:
        del bucket[key]
    await refused(
        world, past, "`quarter` is consistent from .* on, and the archived WAL ends at .*Use an earlier backup"
    )
    [window] = await world.engine.windows(SERVER)
    assert (window.oldest, window.fulls, window.incrementals) == (None, 0, 0)


class Hurrying(SystemClock):
    """A minute is over at every look."""

    def __init__(self) -> None:
        self._looks = 0

    def now(self) -> datetime:
        self._looks += 1
        return super().now() + self._looks * timedelta(minutes=1)


async def test_a_base_whose_wal_does_not_arrive_is_no_success(world: PhysicalWorld) -> None:
    """It is stored and listed as every other, and nobody could restore it."""
    request = BaseRequest(id="next", server=SERVER, kind=BackupKind.FULL)
    with pytest.raises(TemporaryError, match=r"`next` is stored, but WAL segment `.*` is not in the archive"):
        await replace(world, clock=Hurrying()).engine.take(request, no_progress)
    [window] = await world.engine.windows(SERVER)
    assert (window.fulls, window.incrementals) == (1, 2)  # those from before
    assert (await world.take("next")).problem is None  # tried again once it is archived


async def test_a_changed_list_of_files_is_never_rested_on(world: PhysicalWorld) -> None:
    change(world, BaseFolder(world.policy, "quarter").files, flipped)
    with pytest.raises(
        VerificationError, match="list of files of base backup `quarter` in bucket `backups` was changed"
    ):
        await world.take("next", BackupKind.INCREMENTAL, "quarter")
    assert not [key for key in objects_of(world).buckets[BUCKET] if "/next/" in key]


async def test_no_room_is_told_before_anything_is_fetched(past: Past, world: PhysicalWorld) -> None:
    full = replace(world, reserve=1 << 60)
    await refused(full, past, "The disk of .* has .* free; the restore needs", kind=UserError)


@pytest.fixture
def small(server_directory: Path) -> Iterator[Path]:
    with small_disk(server_directory / "small", SMALL) as place:
        yield place


async def test_a_disk_that_runs_full_while_it_is_fetched(past: Past, world: PhysicalWorld, small: Path) -> None:
    # It seems to have room at first: somebody else fills it meanwhile.
    filled = replace(world, directory=small, reserve=-(1 << 40))
    await refused(filled, past, "is full. Free space there", kind=UserError)


@pytest.fixture
def unsteady(past: Past, world: PhysicalWorld) -> UnsteadyObjects:
    """The bucket of the world, which may be away or full from some call on."""
    made = UnsteadyObjects(BUCKET)
    made.buckets = objects_of(world).buckets
    return made


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_bucket_that_goes_away_while_it_is_read(
    past: Past, world: PhysicalWorld, unsteady: UnsteadyObjects, after: int
) -> None:
    """Nothing of production is near; the same restore goes through once the bucket is back."""

    class Leaving(UnsteadyObjects):
        opened = 0

        async def get_stream(self, bucket: str, key: str) -> AsyncIterator[bytes]:
            if key.endswith("/base.age"):
                self.away |= {bucket} if self.opened == after else set()
                self.opened += 1
            async for chunk in super().get_stream(bucket, key):
                yield chunk

    leaving = Leaving(BUCKET)
    leaving.buckets = unsteady.buckets
    if after == 3:  # the chain has three members: the last of all calls are those of WAL
        leaving.away = {BUCKET}
    broken = replace(world, objects=leaving)
    await refused(broken, past, f"Bucket `{BUCKET}` does not answer", kind=TemporaryError)
    leaving.away, leaving.opened = set(), 99
    assert (await broken.restore(RecoveryTarget(time=past.commits[4].after))).backup == "quarter"


@pytest.mark.parametrize("fault", ["away", "full"])
async def test_a_bucket_that_takes_nothing_while_a_backup_is_made(
    world: PhysicalWorld, unsteady: UnsteadyObjects, fault: str
) -> None:
    broken = replace(world, objects=unsteady)
    before = set(unsteady.buckets[BUCKET])
    setattr(unsteady, fault, {BUCKET})
    with pytest.raises(TemporaryError, match=f"Bucket `{BUCKET}` did not store .*full|`{BUCKET}` does not answer"):
        await broken.take("next")
    unsteady.away, unsteady.full = set(), set()
    assert set(unsteady.buckets[BUCKET]) == before
    assert "next" not in {entry.manifest.id for entry in await broken.engine.catalogue(SERVER)}
    assert (await broken.take("next")).problem is None


async def test_a_base_backup_that_the_bucket_cut_off_is_none(world: PhysicalWorld) -> None:
    class Cutting(MemoryObjects):
        async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
            sent = await super().put_stream(bucket, key, chunks)
            kept = self.buckets[bucket][key]
            self.buckets[bucket][key] = MemoryObject(kept.body[:-1], kept.modified_at)
            return sent

    cutting = Cutting(BUCKET)
    cutting.buckets = objects_of(world).buckets
    with pytest.raises(TemporaryError, match=r"did not keep `.*` as it was sent"):
        await replace(world, objects=cutting).take("next")
    assert "next" not in {entry.manifest.id for entry in await world.engine.catalogue(SERVER)}


async def test_a_cancelled_restore_leaves_nothing(past: Past, world: PhysicalWorld) -> None:
    work = asyncio.create_task(world.restore(RecoveryTarget(time=past.commits[4].after)))
    await until((world.scratch_directory / "s1" / "claim.json").exists, within=60)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert world.clean() == []


def test_a_signature_over_one_kind_never_passes_for_another(past: Past) -> None:
    body = Signed[PhysicalManifest].sign(_manifest(past), past.world.keys.signing).body()
    assert json.loads(body)["document"]["id"] == "full"
    other = Signed[StoredObject].sign(_manifest(past).stored, past.world.keys.signing)
    with pytest.raises(VerificationError, match="cannot be read"):
        Signed[PhysicalManifest].parse(other.body(), past.world.policy.trusted_signers, what="It")


def _manifest(past: Past) -> PhysicalManifest:
    objects = past.world.objects
    assert isinstance(objects, MemoryObjects)
    body = objects.buckets[BUCKET][BaseFolder(past.world.policy, "full").manifest].body
    return Signed[PhysicalManifest].model_validate_json(body).document
