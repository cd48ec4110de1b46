"""What every witness promises: the fake, the file, and a real bucket under Object Lock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from actions.adapters.witness_file import FileWitness
from actions.adapters.witness_s3 import S3Witness
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from actions.site import Bucket
from bot.services.record.witness import Witness, bounded
from tests.fakes.secrets import MemorySecrets
from tests.fakes.witness import MemoryWitness
from tests.fixtures.shared_s3 import S3

KINDS = ("memory", "file", "s3")


def s3_witness(s3: S3, bucket: str, *, secret: str = "") -> S3Witness:
    secrets = MemorySecrets({"env:ACCESS": s3.access_key, "env:SECRET": secret or s3.secret_key})
    place = Bucket(name=bucket, endpoint=s3.endpoint, access_key="env:ACCESS", secret_key="env:SECRET")
    return S3Witness("vault", place, "record/", secrets, keep=timedelta(seconds=2))


@pytest.fixture
def locked_bucket(s3: S3, bucket: str) -> str:
    """A bucket under Object Lock; what is in it stays for two seconds."""
    name = f"{bucket}-locked"
    s3.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


@pytest.fixture(params=KINDS)
def witness(request: pytest.FixtureRequest, tmp_path: Path) -> Witness:
    if request.param == "memory":
        return MemoryWitness()
    if request.param == "file":
        return FileWitness("file", tmp_path / "new" / "witness.jsonl")
    return s3_witness(request.getfixturevalue("s3"), request.getfixturevalue("locked_bucket"))


async def test_a_new_witness_has_nothing(witness: Witness) -> None:
    assert list(await witness.newest(3)) == []
    assert [line async for line in witness.everything()] == []


async def test_what_is_published_is_read_newest_first(witness: Witness) -> None:
    await witness.publish(1, ["one"])
    await witness.publish(3, ["two", "three"])
    await witness.publish(10, ["ten"])
    assert list(await witness.newest(2)) == ["ten", "three"]
    assert list(await witness.newest(9)) == ["ten", "three", "two", "one"]
    assert sorted([line async for line in witness.everything()]) == ["one", "ten", "three", "two"]


async def test_publishing_again_changes_nothing(witness: Witness) -> None:
    await witness.publish(1, ["one"])
    await witness.publish(2, ["two"])
    await witness.publish(2, ["two"])
    assert list(await witness.newest(9)) == ["two", "one"]


async def test_long_lines_come_back_whole(witness: Witness) -> None:
    long = "x" * 700_000
    await witness.publish(1, [long])
    await witness.publish(2, [f"{long}y"])
    assert [len(line) for line in await witness.newest(2)] == [700_001, 700_000]


@pytest.mark.integration
async def test_nobody_deletes_what_the_bucket_holds(s3: S3, locked_bucket: str) -> None:
    from botocore.exceptions import ClientError

    witness = s3_witness(s3, locked_bucket)
    await witness.publish(1, ["one"])
    client = s3.client()
    [version] = client.list_object_versions(Bucket=locked_bucket)["Versions"]
    kept = client.head_object(Bucket=locked_bucket, Key=version["Key"])
    assert kept["ObjectLockMode"] == "COMPLIANCE"
    # Also with the account that may do everything, and when asked to pass over the lock.
    for bypass in (False, True):
        with pytest.raises(ClientError):
            client.delete_object(
                Bucket=locked_bucket,
                Key=version["Key"],
                VersionId=version["VersionId"],
                BypassGovernanceRetention=bypass,
            )
    # A marker hides the object from a plain look; the witness still reads it.
    client.delete_object(Bucket=locked_bucket, Key=version["Key"])
    assert list(await witness.newest(1)) == ["one"]


@pytest.mark.integration
async def test_another_checkpoint_of_the_same_number_is_refused(s3: S3, locked_bucket: str) -> None:
    witness = s3_witness(s3, locked_bucket)
    await witness.publish(1, ["one"])
    with pytest.raises(PermanentError, match="another checkpoint 1"):
        await witness.publish(1, ["forged"])
    assert list(await witness.newest(5)) == ["one"]


@pytest.mark.integration
@pytest.mark.parametrize("call", ["publish", "newest"])
async def test_wrong_keys_are_named_without_them(s3: S3, locked_bucket: str, call: str) -> None:
    witness = s3_witness(s3, locked_bucket, secret="not-the-secret")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "publish": lambda: witness.publish(1, ["one"]),
        "newest": lambda: witness.newest(1),
    }
    with pytest.raises(UserError, match=r"Witness `vault`.*keys") as refused:
        await calls[call]()
    assert "not-the-secret" not in str(refused.value)


@pytest.mark.integration
async def test_a_bucket_without_a_lock_is_no_witness(s3: S3, bucket: str) -> None:
    with pytest.raises(DrError, match="vault"):
        await s3_witness(s3, bucket).publish(1, ["one"])


async def test_a_server_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    nowhere = S3("http://127.0.0.1:9", "key", "secret")
    with pytest.raises(TemporaryError, match="does not answer"):
        await s3_witness(nowhere, "nowhere").newest(1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(TemporaryError, match="cannot use"):
        await FileWitness("file", blocked / "inside").publish(1, ["one"])


async def test_a_witness_that_hangs_is_given_up() -> None:
    with pytest.raises(TemporaryError, match=r"`slow` has not answered within 0.05 s"):
        await bounded(asyncio.sleep(30), "slow", timedelta(seconds=0.05))


async def test_a_line_cut_by_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "witness.jsonl"
    witness = FileWitness("file", path)
    await witness.publish(1, ["one"])
    path.write_bytes(path.read_bytes() + b"hal")
    await witness.publish(2, ["two"])
    assert list(await witness.newest(5)) == ["two", "hal", "one"]
