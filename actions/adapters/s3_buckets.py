"""Settings, versions and trials of S3 buckets, over the connections of `S3Store`."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from actions.adapters.s3 import ABSENT, READ, S3Store
from actions.bucket_ports import Buckets
from actions.buckets import BucketFacts, LifecycleRule, ObjectAttributes, ObjectVersion, OpenedObject, Trial
from actions.errors import DrError, TemporaryError, UserError
from actions.site import LockMode

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

HEADERS = {
    "content-type": "ContentType",
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
}
UNSET = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "ReplicationConfigurationNotFoundError",
        "ServerSideEncryptionConfigurationNotFoundError",
        "NoSuchBucketPolicy",
    }
)
"""What a store answers when a setting was never made: a fact, not a failure."""

SLOW = frozenset({"GLACIER", "DEEP_ARCHIVE"})
ONE_COPY = 5 * 1024**3  # bytes that CopyObject takes at most; larger ones are copied in parts


class S3Buckets(S3Store, Buckets):
    """The same store, seen as buckets with settings and versions."""

    # ------------------------------------------------------------ settings

    async def facts(self, bucket: str) -> BucketFacts:
        client = await self._reader(bucket)
        reading: dict[str, Callable[[], dict[str, Any]]] = {
            "versioning": lambda: _versioning(client.get_bucket_versioning(Bucket=bucket)),
            "object lock": lambda: _lock(client.get_object_lock_configuration(Bucket=bucket)),
            "encryption": lambda: _encryption(client.get_bucket_encryption(Bucket=bucket)),
            "lifecycle": lambda: _lifecycle(client.get_bucket_lifecycle_configuration(Bucket=bucket)),
            "replication": lambda: _replication(client.get_bucket_replication(Bucket=bucket)),
        }
        found: dict[str, Any] = {}
        unseen: dict[str, str] = {}
        for name, read in reading.items():
            try:
                found |= await self._threaded(read)
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code == "NoSuchBucket":
                    raise self._refused(bucket, "", "show", error) from error
                if code in UNSET:
                    found |= _unset(name)
                else:
                    unseen[name] = f"the store answers {code or 'nothing that is understood'}"
            except (BotoCoreError, HTTPError) as error:
                raise self._refused(bucket, "", "show the settings of", error) from error
        return BucketFacts(**found, unseen=unseen)

    # ------------------------------------------------------------ trials

    async def trials(self, bucket: str, prefix: str) -> Sequence[Trial]:
        client = await self._client(bucket)
        key, body = f"{prefix}drbot-trial/{secrets.token_hex(4)}", secrets.token_bytes(64)
        tried: list[tuple[str, Callable[[], str]]] = [
            ("store and read", functools.partial(self._trial_put, client, bucket, key, body)),
            ("store in parts and read", functools.partial(self._trial_parts, client, bucket, f"{key}-parts", body)),
            ("refuse to overwrite", functools.partial(self._trial_condition, client, bucket, key, body)),
        ]
        trials = []
        for what, run in tried:
            try:
                trials.append(Trial(what=what, problem=await self._threaded(run)))
            except (BotoCoreError, ClientError, HTTPError) as error:
                refused = self._refused(bucket, key, what, error)
                if isinstance(refused, TemporaryError):
                    raise refused from error
                trials.append(Trial(what=what, problem=str(refused)))
        for left in (key, f"{key}-parts"):
            with contextlib.suppress(DrError):
                await self.delete(bucket, left)
        return trials

    def _trial_put(self, client: S3Client, bucket: str, key: str, body: bytes) -> str:
        client.put_object(Bucket=bucket, Key=key, Body=body, **self._encryption(bucket))
        answer = client.get_object(Bucket=bucket, Key=key)
        if answer["Body"].read() != body:
            return "what comes back is not what was stored: the store garbles the client's checksums"
        asked = self._encryption(bucket).get("ServerSideEncryption", "")
        given = answer.get("ServerSideEncryption", "")
        return "" if given == asked or not asked else f"`{asked}` was asked for, the object is stored as `{given}`"

    def _trial_parts(self, client: S3Client, bucket: str, key: str, body: bytes) -> str:
        upload = client.create_multipart_upload(Bucket=bucket, Key=key, **self._encryption(bucket))["UploadId"]
        try:
            tag = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=body)["ETag"]
            client.complete_multipart_upload(
                Bucket=bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]},
            )
        except BaseException:
            with contextlib.suppress(BotoCoreError, ClientError, HTTPError):
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
            raise
        if client.get_object(Bucket=bucket, Key=key)["Body"].read() != body:
            return "what comes back is not what was stored: the store garbles the client's checksums"
        return ""

    def _trial_condition(self, client: S3Client, bucket: str, key: str, body: bytes) -> str:
        try:
            client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*", **self._encryption(bucket))
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                return ""
            raise
        return "an object that must not be overwritten was overwritten: the store ignores `If-None-Match`"

    # ------------------------------------------------------------ versions

    async def versions(self, bucket: str, prefix: str) -> Sequence[ObjectVersion]:
        client = await self._reader(bucket)

        def pages() -> list[ObjectVersion]:
            found: list[ObjectVersion] = []
            for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
                found += [_version(entry, marker=False) for entry in page.get("Versions", [])]
                found += [_version(entry, marker=True) for entry in page.get("DeleteMarkers", [])]
            # Within a second only the store knows the order, and tells the newest alone.
            return sorted(found, key=lambda item: (item.key, not item.latest, -item.modified_at.timestamp()))

        return await self._call(bucket, prefix, "list the versions of", pages)

    async def open(self, bucket: str, key: str, version: str) -> OpenedObject:
        client = await self._reader(bucket)
        call = functools.partial(client.get_object, Bucket=bucket, Key=key, VersionId=version)
        try:
            answer: Any = await self._threaded(call)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"NoSuchVersion", "InvalidArgument", *ABSENT}:
                raise UserError(f"Bucket `{bucket}` has no version `{version}` of `{key}`.") from error
            raise self._refused(bucket, key, "read", error) from error
        except (BotoCoreError, HTTPError) as error:
            raise self._refused(bucket, key, "read", error) from error
        return OpenedObject(
            bytes=answer["ContentLength"],
            attributes=_attributes(answer),
            chunks=self._chunks(bucket, key, answer["Body"]),
            close=answer["Body"].close,
        )

    async def _chunks(self, bucket: str, key: str, body: Any) -> AsyncIterator[bytes]:
        while chunk := await self._call(bucket, key, "read", functools.partial(body.read, READ)):
            yield chunk

    async def store(self, bucket: str, key: str, chunks: AsyncIterator[bytes], attributes: ObjectAttributes) -> int:
        return await self._streamed(bucket, key, chunks, _about(attributes))

    async def put_on_top(self, bucket: str, key: str, version: str, *, note: str) -> None:
        client = await self._client(bucket)
        looked = await self._call(
            bucket,
            key,
            "look at",
            functools.partial(client.head_object, Bucket=bucket, Key=key, VersionId=version),
        )
        noted = _attributes(looked).noted(note)
        if looked["ContentLength"] >= ONE_COPY:
            with await self.open(bucket, key, version) as opened:
                await self.store(bucket, key, opened.chunks, noted)
            return
        copy = functools.partial(
            client.copy_object,
            Bucket=bucket,
            Key=key,
            CopySource={"Bucket": bucket, "Key": key, "VersionId": version},
            MetadataDirective="REPLACE",
            **_about(noted),
            **self._encryption(bucket),
        )
        await self._call(bucket, key, "bring back", copy)


def _about(attributes: ObjectAttributes) -> dict[str, Any]:
    about: dict[str, Any] = {HEADERS[name]: value for name, value in attributes.headers.items() if name in HEADERS}
    return {**about, "Metadata": dict(attributes.metadata)}


def _attributes(answer: Any) -> ObjectAttributes:
    headers = {name: str(answer[field]) for name, field in HEADERS.items() if answer.get(field)}
    return ObjectAttributes(headers=headers, metadata=answer.get("Metadata", {}))


def _version(entry: Any, *, marker: bool) -> ObjectVersion:
    return ObjectVersion(
        key=entry["Key"],
        version=entry.get("VersionId") or "null",
        modified_at=entry["LastModified"].astimezone(UTC),
        bytes=0 if marker else entry.get("Size", 0),
        etag="" if marker else str(entry.get("ETag", "")).strip('"'),
        marker=marker,
        latest=bool(entry.get("IsLatest", True)),
    )


# ---------------------------------------------------------------- settings as values


def _unset(name: str) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {
        "object lock": {"lockable": False, "object_lock": LockMode.OFF},
        "encryption": {"encryption": ""},
        "lifecycle": {"lifecycle": ()},
        "replication": {"replicates_to": ()},
    }
    return values.get(name, {})


def _versioning(answer: Any) -> dict[str, Any]:
    return {"versioning": answer.get("Status") == "Enabled"}


def _lock(answer: Any) -> dict[str, Any]:
    settings = answer.get("ObjectLockConfiguration", {})
    if settings.get("ObjectLockEnabled") != "Enabled":
        return {"lockable": False, "object_lock": LockMode.OFF}
    rule = settings.get("Rule", {}).get("DefaultRetention", {})
    mode = LockMode(str(rule["Mode"]).lower()) if rule.get("Mode") else LockMode.OFF
    days = rule.get("Days", 0) + 365 * rule.get("Years", 0)
    return {"lockable": True, "object_lock": mode, "locked_for": timedelta(days=days) if days else None}


def _encryption(answer: Any) -> dict[str, Any]:
    rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm", "") for rule in rules]
    return {"encryption": next(filter(None, defaults), "")}


def _lifecycle(answer: Any) -> dict[str, Any]:
    rules = [_rule(number, rule) for number, rule in enumerate(answer.get("Rules", []), 1)]
    return {"lifecycle": tuple(rule for rule in rules if rule is not None)}


def _rule(number: int, rule: Any) -> LifecycleRule | None:
    if rule.get("Status") != "Enabled":
        return None
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    narrow = {"Tag", "Tags", "ObjectSizeGreaterThan", "ObjectSizeLessThan"}
    moves = [move for move in rule.get("Transitions", []) if move.get("StorageClass") in SLOW]
    expiry = rule.get("Expiration", {})
    return LifecycleRule(
        name=str(rule.get("ID") or number),
        prefix=str(rule.get("Prefix") or chosen.get("Prefix") or both.get("Prefix") or ""),
        narrowed=bool(narrow & (chosen.keys() | both.keys())),
        # A date deletes everything older at once.
        deletes_after=timedelta(0) if "Date" in expiry else _days(expiry.get("Days")),
        deletes_versions_after=_days(rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")),
        archives_after=min((timedelta(days=move.get("Days", 0)) for move in moves), default=None),
    )


def _days(count: int | None) -> timedelta | None:
    return None if count is None else timedelta(days=count)


def _replication(answer: Any) -> dict[str, Any]:
    rules = [
        rule
        for rule in answer.get("ReplicationConfiguration", {}).get("Rules", [])
        if rule.get("Status") == "Enabled" and rule.get("Destination", {}).get("Bucket")
    ]
    deletes = [rule.get("DeleteMarkerReplication", {}).get("Status") == "Enabled" for rule in rules]
    return {
        "replicates_to": tuple(str(rule["Destination"]["Bucket"]).rpartition(":")[2] for rule in rules),
        "replicates_deletes": all(deletes) if deletes else None,
    }
