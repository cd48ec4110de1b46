"""The real engine of file copies on buckets in memory; a site without files has none to copy."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.files import FileCopies
from actions.ports import Clock
from actions.site import Site
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.secrets import MemorySecrets

KEY = Ed25519PrivateKey.from_private_bytes(b"a key of the tests, never secret")
KEY_PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
KEY_SIGNER = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


def memory_files(
    site: Site | None = None, buckets: MemoryBuckets | None = None, clock: Clock | None = None
) -> FileCopies:
    """`env:FILES_KEY` resolves to the key that signs."""
    store = buckets or MemoryBuckets()
    secrets = MemorySecrets({"env:FILES_KEY": KEY_PEM})
    return FileCopies(site or Site(), objects=store, buckets=store, secrets=secrets, clock=clock or MemoryClock())
