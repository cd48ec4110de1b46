"""Clients for S3 share what they read from the library's files, and nothing else."""

from botocore.config import Config

from actions.adapters.s3_clients import _descriptions, s3_client
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
