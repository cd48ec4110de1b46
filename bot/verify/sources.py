"""Where checkpoints are read from: a file, a folder of files, a bucket, or a line that was copied from a channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class NoCheckpointsError(Exception):
    """Nothing can be read there; the text says why."""


COPIED = "the copied line"
"""Where a checkpoint stands that was given itself."""


def checkpoints(source: str, *, endpoint: str | None = None) -> Iterator[tuple[str, str]]:
    """Every line there, with where it stands. `s3://bucket/folder/` is read with the credentials of the environment, as
    AWS programs do; lines in braces are checkpoints themselves. Raises NoCheckpointsError."""
    if source.lstrip().startswith("{"):
        yield from ((COPIED, line) for line in source.splitlines() if line.strip())
        return
    if source.startswith("s3://"):
        yield from _bucket(source, endpoint)
        return
    path = Path(source)
    try:
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        for file in files:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield f"{file}:{number}", line
    except OSError as error:
        raise NoCheckpointsError(f"{source} cannot be read: {error.strerror}.") from error


def _bucket(source: str, endpoint: str | None) -> Iterator[tuple[str, str]]:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    place = urlsplit(source)
    client = boto3.client("s3", endpoint_url=endpoint)
    try:
        pages = client.get_paginator("list_object_versions").paginate(
            Bucket=place.netloc, Prefix=place.path.lstrip("/")
        )
        for item in (item for page in pages for item in page.get("Versions", [])):
            version = item.get("VersionId", "null")
            which: Any = {} if version == "null" else {"VersionId": version}
            text = client.get_object(Bucket=place.netloc, Key=item["Key"], **which)["Body"].read().decode()
            for line in text.splitlines():
                yield f"s3://{place.netloc}/{item['Key']}", line
    except (BotoCoreError, ClientError) as error:
        raise NoCheckpointsError(f"{source} cannot be read: {error}.") from error
