"""A registry that speaks the OCI distribution API, over HTTP; nothing is pulled but manifests.

Source: OCI Distribution Specification 1.1 (pulling manifests, checking blobs), and the token authentication of the
`distribution` registry: a 401 names the realm, service and scope to ask a token for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from actions.errors import PermanentError, TemporaryError, UserError
from actions.images import ImageFacts, Registry
from actions.ports import Secrets
from actions.site import ImagesPolicy

LIMIT = timedelta(seconds=15)
AT_ONCE = 8
MANIFEST_BYTES = 4 * 1024 * 1024  # the specification's limit of a manifest
LOOPBACK = ("127.0.0.1", "::1", "localhost")
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

Json = dict[str, Any]


class HttpRegistry(Registry):
    """One registry. Without `policy` it answers every question with the sentence that the plan names none."""

    def __init__(self, policy: ImagesPolicy | None, secrets: Secrets) -> None:
        self._policy, self._secrets = policy, secrets

    async def find(self, repository: str, reference: str) -> ImageFacts | None:
        policy = self._policy
        if policy is None:
            raise UserError("The plan file names no registry of the recovery region. Add `backups.images`.")
        timeout = aiohttp.ClientTimeout(total=LIMIT.total_seconds())
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                talk = _Talk(policy, self._secrets, session, repository)
                return await talk.image(reference)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise TemporaryError(
                f"The registry `{policy.url}` does not answer ({type(error).__name__}). Check that it runs."
            ) from error


class _Talk:
    """One conversation about one repository, under one token."""

    def __init__(self, policy: ImagesPolicy, secrets: Secrets, session: aiohttp.ClientSession, repository: str) -> None:
        self._policy, self._secrets, self._session, self._repository = policy, secrets, session, repository
        self._authorization = ""
        self._room = asyncio.Semaphore(AT_ONCE)

    async def image(self, reference: str) -> ImageFacts | None:
        found = await self._manifest(reference)
        if found is None:
            return None
        digest, document = found
        if document.get("mediaType") in INDEXES or "manifests" in document:
            parts = await asyncio.gather(*(self.image(str(item["digest"])) for item in document.get("manifests", [])))
            named = [str(item["digest"]) for item in document.get("manifests", [])]
            gone = [name for name, part in zip(named, parts, strict=True) if part is None]
            deeper = [missing for part in parts if part is not None for missing in part.missing]
            size = sum(part.bytes for part in parts if part is not None)
            return ImageFacts(digest=digest, bytes=size, missing=(*gone, *deeper))
        blobs = [document["config"], *document.get("layers", [])] if "config" in document else []
        there = await asyncio.gather(*(self._has(str(blob["digest"])) for blob in blobs))
        gone = [str(blob["digest"]) for blob, has in zip(blobs, there, strict=True) if not has]
        return ImageFacts(digest=digest, bytes=sum(int(blob.get("size", 0)) for blob in blobs), missing=tuple(gone))

    async def _manifest(self, reference: str) -> tuple[str, Json] | None:
        status, body = await self._ask("GET", f"manifests/{reference}")
        if status == 404:
            return None
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            raise PermanentError(
                f"The registry `{self._policy.url}` gives other bytes for `{self._repository}@{reference}` than that "
                "digest says. Do not deploy from it; look at the registry."
            )
        document = json.loads(body)
        if not isinstance(document, dict):
            raise PermanentError(f"The registry `{self._policy.url}` answers with something that is no manifest.")
        return digest, document

    async def _has(self, digest: str) -> bool:
        status, _ = await self._ask("HEAD", f"blobs/{digest}")
        return status != 404

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body of a 200 or 404; everything else is raised."""
        url = f"{self._policy.url.rstrip('/')}/v2/{self._repository}/{path}"
        status = 0
        for _ in range(2):
            headers = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
            if self._authorization:
                headers["Authorization"] = self._authorization
            async with self._room, self._session.request(method, url, headers=headers) as answer:
                if answer.status in (200, 404):
                    return answer.status, await answer.content.read(MANIFEST_BYTES)
                challenge = answer.headers.get("WWW-Authenticate", "")
                status = answer.status
            if status != 401 or self._authorization:
                break
            self._authorization = await self._authorized(challenge)
        raise self._refused(status)

    async def _authorized(self, challenge: str) -> str:
        policy = self._policy
        basic = ""
        if policy.username and policy.password:
            user = await self._secrets.resolve(policy.username)
            password = await self._secrets.resolve(policy.password)
            basic = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        if challenge.lower().startswith("basic"):
            return basic or "Basic"
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = urlsplit(asked.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and realm.hostname in LOOPBACK):
            raise PermanentError(f"The registry `{policy.url}` asks for its password over plain HTTP; it is not sent.")
        query = {name: asked[name] for name in ("service", "scope") if name in asked}
        headers = {"Authorization": basic} if basic else {}
        async with self._session.get(asked["realm"], params=query, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise self._refused(answer.status)
            said = await answer.json(content_type=None)
        return f"Bearer {said.get('token') or said.get('access_token') or ''}"

    def _refused(self, status: int) -> Exception:
        if status == 429 or status >= 500:
            return TemporaryError(f"The registry `{self._policy.url}` answered {status}. Look at it, then try again.")
        named = f"`{self._policy.username}` and `{self._policy.password}`" if self._policy.username else "none"
        return UserError(
            f"The registry `{self._policy.url}` refused `{self._repository}` ({status}). Check the credentials of "
            f"`backups.images` ({named}) and what they may read."
        )
