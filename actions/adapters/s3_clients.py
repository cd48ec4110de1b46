"""Clients of boto3 that read its descriptions of the services once for the whole process.

Every client has a session of its own, since sessions are not made for several threads. Each would parse megabytes of
JSON again, which takes ten times as long as the rest of making a client.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

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


@cache
def _descriptions() -> Loader:
    from botocore.loaders import create_loader

    return create_loader()
