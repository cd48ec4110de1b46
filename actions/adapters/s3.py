"""S3 and what speaks its protocol, over boto3 in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from urllib3.exceptions import HTTPError

from actions.adapters.s3_clients import bounded, s3_client
from actions.backup.patience import PATIENCE, AwayError, Patience
from actions.errors import UNKNOWN_NAME, PermanentError, RefusedError, TemporaryError, UserError
from actions.ports import ObjectFacts, ObjectStore, Secrets
from actions.site import Bucket, Site

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

PART = 16 * 1024 * 1024  # bytes; 10,000 parts make 156 GiB, PART_LARGE takes over before that
PART_LARGE = 512 * 1024 * 1024
LARGE_FROM = 9_000  # part number
UPLOADERS = 4
READ = 4 * 1024 * 1024
TRIED_FOR = timedelta(seconds=15)  # after that no request is tried again by itself
STORED_WITHIN = timedelta(seconds=60)
"""Silent for so long, what is stored or copied has failed: a store may first have to write gigabytes."""

ANSWERED_WITHIN = timedelta(seconds=20)
"""The same of what is read or listed, for the next bytes: people wait for it, and there may be another bucket."""

LEFT_ALONE = timedelta(seconds=30)
"""So long nothing more is asked of a bucket that has not answered: each question would wait as long as the first, and
what asks for ten things, one after the other, for minutes."""

ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
FREE = frozenset({"NoSuchObjectLockConfiguration", "NoSuchObjectLegalHold"})
"""What stores answer of an object that was never held, where it could be."""

UNLOCKABLE = frozenset({"InvalidRequest", "ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed"})
"""The same of a bucket without Object Lock, or of a store that knows none."""

WRONG_KEY = frozenset(
    {"AccessDenied", "403", "Forbidden", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken"}
)
AWAY = frozenset({"SlowDown", "ServiceUnavailable", "503", "RequestTimeout", "Throttling"})
RETRY = AWAY | {"InternalError", "500"}


class S3Store(ObjectStore):
    """All buckets of the site. Credentials are resolved at first use, and again after a refusal.

    A stream in its middle waits so long (`patience`) for a store that is away. Everything else fails within seconds;
    where a store takes a connection and then says nothing, a reading after `answered_within`, and those after it at
    once.
    """

    def __init__(
        self,
        site: Site,
        secrets: Secrets,
        *,
        patience: timedelta = PATIENCE,
        answered_within: timedelta = ANSWERED_WITHIN,
    ) -> None:
        self._site, self._patience, self._answered_within = site, patience, answered_within
        self._secrets = secrets
        self._clients: dict[tuple[str, timedelta], S3Client] = {}
        self._silent: dict[str, float] = {}  # bucket -> when it had not answered
        self._pool = ThreadPoolExecutor(max_workers=3 * UPLOADERS, thread_name_prefix="s3")

    def close(self) -> None:
        """End the threads and the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # ------------------------------------------------------------ small objects

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        client = await self._client(bucket)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            extra = {**self._encryption(bucket), **condition}
            await self._threaded(client.put_object, Bucket=bucket, Key=key, Body=body, **extra)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                tries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
                # Our own first try may have been stored although its answer was lost.
                if tries and await self.get(bucket, key) == body:
                    return
                raise UserError(f"`{key}` exists already in bucket `{bucket}` and is not overwritten.") from error
            raise self._refused(bucket, key, "store", error) from error
        except (BotoCoreError, HTTPError) as error:
            raise self._refused(bucket, key, "store", error) from error

    async def get(self, bucket: str, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get_stream(bucket, key)])

    async def get_first(self, bucket: str, key: str, count: int) -> bytes:
        client = await self._reader(bucket)

        def read() -> bytes:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{count - 1}")
            with contextlib.closing(answer["Body"]) as body:
                return body.read(count)

        try:
            return await self._threaded(read)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "InvalidRange":
                return b""  # the object is empty
            raise self._refused(bucket, key, "read", error) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._refused(bucket, key, "read", error) from error

    async def head(self, bucket: str, key: str) -> ObjectFacts | None:
        client = await self._reader(bucket)
        try:
            found = await self._threaded(client.head_object, Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ABSENT:
                return None
            raise self._refused(bucket, key, "look at", error) from error
        except (BotoCoreError, HTTPError) as error:
            raise self._refused(bucket, key, "look at", error) from error
        return ObjectFacts(
            key=key,
            bytes=found["ContentLength"],
            modified_at=found["LastModified"].astimezone(UTC),
            version=found.get("VersionId"),
            metadata=found.get("Metadata", {}),
            etag=found.get("ETag", "").strip('"'),
            replication=found.get("ReplicationStatus", ""),
        )

    async def list(self, bucket: str, prefix: str) -> Sequence[ObjectFacts]:
        client = await self._reader(bucket)

        def pages() -> list[ObjectFacts]:
            return [
                ObjectFacts(
                    key=entry["Key"],
                    bytes=entry["Size"],
                    modified_at=entry["LastModified"].astimezone(UTC),
                    etag=entry.get("ETag", "").strip('"'),
                )
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
                for entry in page.get("Contents", [])
            ]

        return await self._call(bucket, prefix, "list", pages)

    async def delete(self, bucket: str, key: str) -> None:
        client = await self._client(bucket)
        await self._call(bucket, key, "delete", functools.partial(client.delete_object, Bucket=bucket, Key=key))

    async def hold(self, bucket: str, key: str, *, on: bool) -> bool:
        client = await self._client(bucket)
        # Asked first: SeaweedFS answers an object that is not there with an error of its own (500).
        if await self.head(bucket, key) is None:
            raise UserError(f"Bucket `{bucket}` has no object `{key}`.")
        status: Any = {"Status": "ON" if on else "OFF"}
        call = functools.partial(client.put_object_legal_hold, Bucket=bucket, Key=key, LegalHold=status)
        return await self._legal_hold(bucket, key, "hold" if on else "let go of", call) is not None

    async def held(self, bucket: str, key: str) -> bool | None:
        client = await self._reader(bucket)
        call = functools.partial(client.get_object_legal_hold, Bucket=bucket, Key=key)
        found = await self._legal_hold(bucket, key, "tell the legal hold of", call)
        return None if found is None else found.get("LegalHold", {}).get("Status") == "ON"

    async def _legal_hold(self, bucket: str, key: str, verb: str, call: Callable[[], Any]) -> Any:
        """The answer; None where the bucket has no Object Lock."""
        try:
            return await self._threaded(call)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code in FREE | UNLOCKABLE:
                return {} if code in FREE else None
            raise self._refused(bucket, key, verb, error) from error
        except (BotoCoreError, HTTPError) as error:
            raise self._refused(bucket, key, verb, error) from error

    async def sweep_uploads(self, bucket: str, prefix: str, *, older_than: timedelta) -> int:
        client = await self._client(bucket)
        limit = datetime.now(UTC) - older_than

        def sweep() -> int:
            swept = 0
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] <= limit and upload["Key"].startswith(prefix):
                        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                        swept += 1
            return swept

        return await self._call(bucket, prefix, "sweep uploads of", sweep)

    # ------------------------------------------------------------ streams

    async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
        return await self._streamed(bucket, key, chunks, {})

    async def _streamed(self, bucket: str, key: str, chunks: AsyncIterator[bytes], about: dict[str, Any]) -> int:
        """`about` are further arguments of the calls that begin an object."""
        client = await self._client(bucket)
        parts = _parts(chunks)
        first = await anext(parts, b"")
        extra = {**self._encryption(bucket), **about}
        if len(first) < PART:
            put = functools.partial(client.put_object, Bucket=bucket, Key=key, Body=first, **extra)
            await self._call(bucket, key, "store", put)
            return len(first)
        start = functools.partial(client.create_multipart_upload, Bucket=bucket, Key=key, **extra)
        upload = (await self._call(bucket, key, "store", start))["UploadId"]
        try:
            return await self._send_parts(client, bucket, key, upload, first, parts)
        except BaseException:
            abort = functools.partial(client.abort_multipart_upload, Bucket=bucket, Key=key, UploadId=upload)
            await asyncio.shield(self._quietly(abort))
            raise

    async def _send_parts(
        self, client: S3Client, bucket: str, key: str, upload: str, first: bytes, parts: AsyncIterator[bytes]
    ) -> int:
        room = asyncio.Semaphore(UPLOADERS)
        tags: dict[int, str] = {}
        total = 0

        async def send(number: int, body: bytes) -> None:
            try:
                call = functools.partial(
                    client.upload_part, Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body
                )
                tags[number] = (await self._patiently(bucket, key, "store", call))["ETag"]
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                number, body = 1, first
                while body:
                    await room.acquire()
                    group.create_task(send(number, body))
                    total += len(body)
                    number += 1
                    body = await anext(parts, b"")
        except* Exception as errors:  # noqa: BLE001 - the first one is raised as it was
            raise errors.exceptions[0] from None
        complete = functools.partial(
            client.complete_multipart_upload,
            Bucket=bucket,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]},
        )
        try:
            await self._patiently(bucket, key, "store", complete)
        except PermanentError:
            # Its answer may have been lost: the second try is told that there is no such upload any more. An older
            # object of this name and size has other parts.
            found = await self.head(bucket, key)
            if found is None or (found.bytes, found.etag) != (
                total,
                _etag_of([tags[number] for number in sorted(tags)]),
            ):
                raise
        return total

    async def get_stream(self, bucket: str, key: str) -> AsyncIterator[bytes]:
        """One request, read ahead by one chunk; taken up again where it broke off, at the same object."""
        client = await self._reader(bucket)
        place, total, tag, patience = 0, 1, "", Patience(self._patience)
        while place < total:
            wanted: dict[str, Any] = {"Range": f"bytes={place}-", "IfMatch": tag} if tag else {}
            call = functools.partial(client.get_object, Bucket=bucket, Key=key, **wanted)
            try:
                answer = await self._call(bucket, key, "read", call)
            except AwayError as error:
                if not tag:
                    raise
                await patience.once_more(error)
                continue
            if not tag:
                total, tag = answer["ContentLength"], answer["ETag"]
            body, broken = answer["Body"], None
            ahead = asyncio.ensure_future(self._threaded(body.read, READ))
            try:
                while chunk := await ahead:
                    place += len(chunk)
                    patience.over()
                    ahead = asyncio.ensure_future(self._threaded(body.read, READ))
                    yield chunk
            except (BotoCoreError, HTTPError, OSError) as error:
                broken = self._refused(bucket, key, "read", error)
            finally:
                await asyncio.gather(ahead, return_exceptions=True)
                body.close()
            if place < total:  # broken off with an error or without one
                await patience.once_more(
                    broken or TemporaryError(f"Bucket `{bucket}` gave {place} of {total} bytes of `{key}`. Try again.")
                )

    # ------------------------------------------------------------ calls

    def _encryption(self, bucket: str) -> dict[str, Any]:
        entry = self._site.buckets.get(bucket)
        asked = entry.posture.encryption if entry else ""
        return {"ServerSideEncryption": asked} if asked else {}

    async def _reader(self, bucket: str) -> S3Client:
        """For what is read and listed. Raises AwayError for a bucket that did not answer a moment ago."""
        silent_for = time.monotonic() - self._silent.get(bucket, float("-inf"))
        if silent_for < LEFT_ALONE.total_seconds():
            raise AwayError(
                f"Bucket `{bucket}` does not answer: {self._where(bucket)} takes connections, or drops them, without a "
                "word. Check that it runs and can be reached, then try again in half a minute."
            )
        return await self._client(bucket, within=self._answered_within)

    async def _client(self, bucket: str, *, within: timedelta = STORED_WITHIN) -> S3Client:
        """`within`: how long it may say nothing."""
        if (bucket, within) in self._clients:
            return self._clients[bucket, within]
        if bucket not in self._site.buckets:
            known = ", ".join(f"`{name}`" for name in sorted(self._site.buckets)) or "none"
            raise RefusedError(f"The plan file knows no bucket `{bucket}`. Known: {known}.", code=UNKNOWN_NAME)
        entry = self._site.buckets[bucket]
        access = await self._secrets.resolve(entry.access_key)
        secret = await self._secrets.resolve(entry.secret_key)
        try:
            client = await asyncio.to_thread(_made_client, entry, access, secret, within)
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise UserError(f"Bucket `{bucket}` cannot be reached as the plan file has it: {error}.") from error
        return self._clients.setdefault((bucket, within), client)

    async def _threaded(self, call: Callable[..., T], *positional: object, **named: object) -> T:
        work = functools.partial(call, *positional, **named)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _call(self, bucket: str, key: str, verb: str, call: Callable[[], T]) -> T:
        try:
            return await self._threaded(call)
        except (BotoCoreError, ClientError, HTTPError) as error:
            raise self._refused(bucket, key, verb, error) from error

    async def _patiently(self, bucket: str, key: str, verb: str, call: Callable[[], T]) -> T:
        patience = Patience(self._patience)
        while True:
            try:
                return await self._call(bucket, key, verb, call)
            except AwayError as error:
                await patience.once_more(error)

    async def _quietly(self, call: Callable[[], object]) -> None:
        # What cannot be aborted now is found by `sweep_uploads`.
        try:
            await self._threaded(call)
        except (BotoCoreError, ClientError, HTTPError, RuntimeError):
            return

    def _where(self, bucket: str) -> str:
        return self._site.buckets[bucket].endpoint or "S3"

    def _refused(self, bucket: str, key: str, verb: str, error: Exception) -> Exception:
        what = f"Bucket `{bucket}` did not {verb} `{key}`"
        if isinstance(error, ParamValidationError | NoCredentialsError):
            return UserError(f"{what}: {error}. Correct the bucket in the plan file.")
        if not isinstance(error, ClientError):
            if isinstance(error, ReadTimeoutError | ConnectTimeoutError):
                self._silent[bucket] = time.monotonic()
            return AwayError(f"{what}: {self._where(bucket)} does not answer. Check that it runs and can be reached.")
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return UserError(f"There is no bucket `{bucket}`. Create it or correct the plan file.")
        if code in ABSENT:
            return UserError(f"Bucket `{bucket}` has no object `{key}`.")
        if code in WRONG_KEY:
            for each in [each for each in self._clients if each[0] == bucket]:
                del self._clients[each]
            entry = self._site.buckets[bucket]
            lock = " An Object Lock or a legal hold may hold it, too." if verb == "delete" else ""
            return UserError(
                f"{what}: {code}. Check the keys `{entry.access_key}` and `{entry.secret_key}` and their policy.{lock}"
            )
        if code in RETRY or status >= 500:
            kind = AwayError if code in AWAY or status == 503 else TemporaryError
            return kind(
                f"{what}: {code}. Its disk may be full or the service overloaded; look at the storage, then try again.",
                retry_after=timedelta(seconds=30),
            )
        return PermanentError(f"{what}: {code} ({error.response.get('Error', {}).get('Message', '')}).")


def _etag_of(parts: Sequence[str]) -> str:
    """Of an object that was uploaded in these parts, as S3 makes it where it does not encrypt with keys of KMS; empty
    where that cannot be told."""
    try:
        whole = b"".join(bytes.fromhex(part.strip('"')) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}-{len(parts)}"


async def _parts(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream cut into parts of one size (S3 wants that), the last one shorter."""
    held: list[bytes] = []
    size, number = 0, 1
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        wanted = PART if number < LARGE_FROM else PART_LARGE
        while size >= wanted:
            data = b"".join(held)
            yield data[:wanted] if size > wanted else data
            held = [data[wanted:]] if size > wanted else []
            size -= wanted
            number += 1
    if size:
        yield b"".join(held)


def _made_client(entry: Bucket, access: str, secret: str, within: timedelta) -> S3Client:
    amazon = entry.endpoint is None or ".amazonaws.com" in entry.endpoint
    config = Config(
        connect_timeout=5,
        read_timeout=within.total_seconds(),
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=3 * UPLOADERS,
        # The newer default checksums are refused or garbled by other implementations.
        request_checksum_calculation="when_supported" if amazon else "when_required",
        response_checksum_validation="when_supported" if amazon else "when_required",
        s3={"addressing_style": "auto" if amazon else "path"},
    )
    return bounded(s3_client(entry, access, secret, config), TRIED_FOR)
