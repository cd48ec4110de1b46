"""A witness that is a bucket under Object Lock: every object is put with a retention in mode COMPLIANCE, which nobody
can shorten, not even the account's root. The credentials need to put, list and read; they should not delete.

Keys count down, so that a listing begins with the newest. Whoever may put may also put a newer version over an object:
all versions are read, and the reader goes by signatures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from actions.adapters.s3_clients import s3_client
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import Secrets
from actions.site import Bucket

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

LAST = 10**15
"""Above every number; a key is this minus the number."""


class S3Witness:
    """Checkpoints in one folder of one bucket."""

    def __init__(self, name: str, bucket: Bucket, prefix: str, secrets: Secrets, *, keep: timedelta) -> None:
        self.name = name
        self._bucket = bucket
        self._prefix = prefix
        self._secrets = secrets
        self._keep = keep  # how long no object can be deleted
        self._client: S3Client | None = None
        # Its own threads: a bucket that hangs must not use up those of the backups.
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix=f"witness-{name}")

    def close(self) -> None:
        """End the threads and the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def publish(self, number: int, lines: Sequence[str]) -> None:
        """Put one object. Raises PermanentError when another one is there under this number."""
        client = await self._connected()
        key = f"{self._prefix}{LAST - number:016d}-{number}.jsonl"
        body = "\n".join([*lines, ""]).encode()

        def put() -> None:
            client.put_object(
                Bucket=self._bucket.name,
                Key=key,
                Body=body,
                IfNoneMatch="*",
                ObjectLockMode="COMPLIANCE",
                ObjectLockRetainUntilDate=datetime.now(UTC) + self._keep,
            )

        try:
            await self._threaded(put)
        except ClientError as error:
            if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                raise self._refused("store", error) from error
            held = (await self._read(key, None)).splitlines()
            if not held or held[-1] != lines[-1]:
                text = f"Witness `{self.name}` holds another checkpoint {number}; nothing is published over it."
                raise PermanentError(text) from error

    async def newest(self, limit: int) -> Sequence[str]:
        """The lines of the newest objects, newest first."""
        client = await self._connected()

        def first() -> list[tuple[str, str | None]]:
            # Delete markers, which anybody who may delete can add, count as well.
            page = client.list_object_versions(Bucket=self._bucket.name, Prefix=self._prefix, MaxKeys=200 + limit)
            return [(item["Key"], item.get("VersionId")) for item in page.get("Versions", [])][:limit]

        lines: list[str] = []
        for key, version in await self._call("list", first):
            lines += reversed((await self._read(key, version)).splitlines())
            if len(lines) >= limit:
                break
        return lines[:limit]

    async def everything(self) -> AsyncIterator[str]:
        """The lines of all objects, newest object first."""
        client = await self._connected()

        def keys() -> list[tuple[str, str | None]]:
            pages = client.get_paginator("list_object_versions").paginate(Bucket=self._bucket.name, Prefix=self._prefix)
            return [(item["Key"], item.get("VersionId")) for page in pages for item in page.get("Versions", [])]

        for key, version in await self._call("list", keys):
            for line in (await self._read(key, version)).splitlines():
                yield line

    # ------------------------------------------------------------ calls

    async def _read(self, key: str, version: str | None) -> str:
        client = await self._connected()
        which: dict[str, Any] = {} if version in (None, "null") else {"VersionId": version}

        def get() -> bytes:
            return client.get_object(Bucket=self._bucket.name, Key=key, **which)["Body"].read()

        return (await self._call("read", get)).decode(errors="replace")

    async def _connected(self) -> S3Client:
        if self._client is None:
            access = await self._secrets.resolve(self._bucket.access_key)
            secret = await self._secrets.resolve(self._bucket.secret_key)
            self._client = await asyncio.to_thread(_made, self._bucket, access, secret)
        return self._client

    async def _threaded(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except (BotoCoreError, HTTPError) as error:
            where = self._bucket.endpoint or "S3"
            raise TemporaryError(f"Witness `{self.name}`: {where} does not answer. Check that it runs.") from error

    async def _call(self, verb: str, call: Callable[[], T]) -> T:
        try:
            return await self._threaded(call)
        except ClientError as error:
            raise self._refused(verb, error) from error

    def _refused(self, verb: str, error: ClientError) -> Exception:
        code = _code(error)
        what = f"Witness `{self.name}`: bucket `{self._bucket.name}` did not {verb}: {code}"
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500 or code == "SlowDown":
            return TemporaryError(f"{what}. Look at the storage.")
        self._client = None  # its keys may have been changed
        return UserError(f"{what}. Check that it exists with Object Lock, and its keys and their policy.")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _made(bucket: Bucket, access: str, secret: str) -> S3Client:
    amazon = bucket.endpoint is None or ".amazonaws.com" in bucket.endpoint
    config = Config(
        connect_timeout=3,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 2},
        s3={"addressing_style": "auto" if amazon else "path"},
    )
    return s3_client(bucket, access, secret, config)
