"""Clients for S3 share what they read from the library's files, and nothing else."""

from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from actions.adapters.s3_clients import _descriptions, bounded, s3_client
from actions.site import Bucket


def _signed(access_key: str, endpoint: str) -> str:
    bucket = Bucket(name="backups", endpoint=endpoint, access_key="env:A", secret_key="env:S", region="eu-central-1")
    client = s3_client(bucket, access_key, "secret", Config(signature_version="s3v4"))
    try:
        return client.generate_presigned_url("get_object", Params={"Bucket": "backups", "Key": "one"})
    finally:
        client.close()


def test_each_signs_with_its_own_keys_for_its_own_place() -> None:
    first, second = _signed("FIRST", "http://127.0.0.1:1"), _signed("SECOND", "http://127.0.0.1:2")
    assert first.startswith("http://127.0.0.1:1/")
    assert second.startswith("http://127.0.0.1:2/")
    assert "Credential=FIRST%2F" in first
    assert "Credential=SECOND%2F" in second


def test_the_descriptions_of_the_services_are_read_once() -> None:
    _signed("FIRST", "http://127.0.0.1:1")
    assert _descriptions.cache_info().misses == 1


class _Body(BytesIO):
    def stream(self, **_: object) -> list[bytes]:
        return [self.read()]


@pytest.mark.corruption
@pytest.mark.parametrize("fault", ["500", "no-answer"])
@pytest.mark.parametrize(("limit", "tries"), [(timedelta(0), 1), (timedelta(minutes=1), 2)], ids=["over", "not-over"])
def test_no_further_try_is_begun_once_its_time_is_over(fault: str, limit: timedelta, tries: int) -> None:
    bucket = Bucket(name="backups", endpoint="http://127.0.0.1:1", access_key="env:A", secret_key="env:S")
    config = Config(retries={"mode": "standard", "total_max_attempts": 2})
    client = bounded(s3_client(bucket, "KEY", "secret", config), limit)
    asked = 0

    def answer(**_: Any) -> Any:
        nonlocal asked
        asked += 1
        if fault == "no-answer":
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
        return AWSResponse(
            "http://127.0.0.1:1", 500, HTTPHeaders(), _Body(b"<Error><Code>InternalError</Code></Error>")
        )

    client.meta.events.register("before-send.s3", answer)
    with pytest.raises((ClientError, EndpointConnectionError), match=r"InternalError|Could not connect"):
        client.put_object(Bucket="backups", Key="k", Body=b"x")
    client.close()
    assert asked == tries
