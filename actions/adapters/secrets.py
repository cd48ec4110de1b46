"""Resolves references to secrets: `env:NAME`, `file:/path`, `k8s:namespace/name/key`, `vault:path#key`.

A value is handed to the caller and never logged; errors name the reference alone.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from actions.errors import TemporaryError, UserError
from actions.ports import Secrets
from actions.site import SecretRef

LIMIT = timedelta(seconds=10)


@dataclass(frozen=True, kw_only=True)
class VaultAccess:
    """Where Vault (or OpenBao) is; `token` is itself a reference (`env:` or `file:`)."""

    address: str
    token: SecretRef


class SecretReferences(Secrets):
    """Reads at every call, so that a rotated secret is used at once. `seen` is told every value that was handed out,
    to keep it out of what people read."""

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        vault: VaultAccess | None = None,
        seen: Callable[[str], None] | None = None,
    ) -> None:
        self._environment = os.environ if environment is None else environment
        self._vault = vault
        self._seen = seen

    async def resolve(self, ref: SecretRef) -> str:
        """Raises UserError naming the reference when it has no value, TemporaryError when its keeper is silent."""
        value = await self._resolved(ref)
        if self._seen is not None:
            self._seen(value)
        return value

    async def _resolved(self, ref: SecretRef) -> str:
        scheme, _, rest = ref.partition(":")
        match scheme:
            case "env":
                return self._from_environment(ref, rest)
            case "file":
                return await asyncio.to_thread(_from_file, ref, rest)
            case "k8s":
                return await asyncio.to_thread(_from_cluster, ref, rest)
            case "vault":
                return await self._from_vault(ref, rest)
            case _:
                raise UserError(
                    f"`{ref}` is no reference to a secret. Write `env:NAME`, `file:/path`, `k8s:namespace/name/key` "
                    "or `vault:path#key`."
                )

    def _from_environment(self, ref: SecretRef, name: str) -> str:
        value = self._environment.get(name, "")
        if not value:
            raise UserError(f"The secret `{ref}` is not set. Set the environment variable `{name}` of this process.")
        return value

    async def _from_vault(self, ref: SecretRef, rest: str) -> str:
        import aiohttp

        path, _, key = rest.partition("#")
        if self._vault is None or not path or not key:
            raise UserError(f"The secret `{ref}` needs a Vault address and the form `vault:path#key`.")
        token = await self.resolve(self._vault.token)
        url = f"{self._vault.address.rstrip('/')}/v1/{path.lstrip('/')}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT.total_seconds())) as session,
                session.get(url, headers={"X-Vault-Token": token}) as answer,
            ):
                if answer.status in (403, 404):
                    raise UserError(
                        f"Vault answered {answer.status} for `{ref}`. Check the path and the token's policy."
                    )
                if answer.status != 200:
                    raise TemporaryError(f"Vault answered {answer.status} for `{ref}`.")
                body: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TemporaryError(f"Vault did not answer for `{ref}` within {LIMIT.total_seconds():g} s.") from error
        data = body.get("data", {})
        # Version 2 of the key-value engine wraps the values once more.
        values = data["data"] if isinstance(data.get("data"), dict) else data
        if key not in values:
            raise UserError(f"The secret `{ref}` has no key `{key}` in Vault.")
        return str(values[key])


def _from_file(ref: SecretRef, path: str) -> str:
    try:
        value = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"The secret `{ref}` has no file. Mount or write it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The secret `{ref}` cannot be read by this process. Check the file's owner and mode."
        ) from error
    value = value.rstrip("\r\n")
    if not value:
        raise UserError(f"The secret `{ref}` is empty. Write its value.")
    return value


def _from_cluster(ref: SecretRef, rest: str) -> str:
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    parts = rest.split("/")
    if len(parts) != 3:
        raise UserError(f"`{ref}` must have the form `k8s:namespace/name/key`.")
    namespace, name, key = parts
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise UserError(f"The secret `{ref}` can be read only by a process inside the cluster.") from error
    try:
        secret = client.CoreV1Api().read_namespaced_secret(name, namespace, _request_timeout=LIMIT.total_seconds())
    except ApiException as error:
        raise UserError(f"The cluster answered {error.status} for `{ref}`. Check the name and the role.") from error
    except HTTPError as error:
        raise TemporaryError(f"The cluster did not answer for `{ref}`.") from error
    values = secret.data or {}
    if key not in values:
        raise UserError(f"The secret `{ref}` has no key `{key}`.")
    return base64.b64decode(values[key]).decode()
