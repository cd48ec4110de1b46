"""Clients of boto3 that read its descriptions of the services once for the whole process.

Every client has a session of its own, since sessions are not made for several threads. Each would parse megabytes of
JSON again, which takes ten times as long as the rest of making a client.
"""

from __future__ import annotations

import time
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from actions.site import Bucket

if TYPE_CHECKING:
    from botocore.config import Config
    from botocore.loaders import Loader
    from mypy_boto3_s3.client import S3Client


def s3_client(bucket: Bucket, access_key: str, secret_key: str, config: Config) -> S3Client:
    """A client for where the bucket is, with these keys and no others."""
    import boto3
    import botocore.session

    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions())
    return boto3.session.Session(botocore_session=core).client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def bounded(client: S3Client, limit: timedelta) -> S3Client:
    """The same client, which begins no further try of a request that was begun longer ago.

    A store whose disk is full may think for half a minute before it says so (SeaweedFS 4.48: 30 s), and one that is
    frozen takes the whole time-out. Four tries of that would leave people without a word for minutes.
    """
    begun = "drbot_begun"

    def begin(params: dict[str, Any], **_: object) -> None:
        params["context"][begun] = time.monotonic()

    def give_up(
        request_dict: dict[str, Any], response: tuple[Any, Any] | None, caught_exception: Exception | None, **what: Any
    ) -> None:
        if time.monotonic() - request_dict["context"].get(begun, 0.0) < limit.total_seconds():
            return
        if caught_exception is not None:
            raise caught_exception
        if response is not None and response[0].status_code >= 500:
            raise ClientError(response[1], what["operation"].name)

    client.meta.events.register("before-call.s3", begin)
    client.meta.events.register_first("needs-retry.s3", give_up)
    return client


@cache
def _descriptions() -> Loader:
    from botocore.loaders import create_loader

    return create_loader()
