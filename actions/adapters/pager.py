"""The pager: one HTTP request to a webhook that reaches people without Slack."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import urlsplit

import aiohttp

from actions.errors import PermanentError, TemporaryError
from actions.ports import Pager, Secrets
from actions.site import SecretRef

LIMIT = timedelta(seconds=5)
"""For one try, name look-up included."""

AGAIN = timedelta(seconds=15)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class WebhookPager(Pager):
    """Posts `{"text", "key", "source"}` as JSON. The URL is a secret: whoever has it can page, so no error holds it."""

    def __init__(self, url: SecretRef, secrets: Secrets, *, limit: timedelta = LIMIT) -> None:
        self._url = url
        self._secrets = secrets
        self._limit = limit

    async def page(self, text: str, *, key: str) -> None:
        url = await self._secrets.resolve(self._url)
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise PermanentError(f"The pager's address `{self._url}` is no https URL; correct the secret.")
        timeout = aiohttp.ClientTimeout(total=self._limit.total_seconds())
        body = {"text": text, "key": key, "source": "drbot"}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                # A redirect would carry the words to somebody the plan file does not name.
                session.post(url, json=body, allow_redirects=False) as answer,
            ):
                status = answer.status
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            # The library's own words may hold the URL.
            raise TemporaryError(
                f"The pager `{self._url}` cannot be reached ({type(error).__name__}).", retry_after=AGAIN
            ) from None
        if 200 <= status < 300:
            return
        if status == 429 or status >= 500:
            raise TemporaryError(f"The pager `{self._url}` answered {status}.", retry_after=AGAIN)
        raise PermanentError(f"The pager `{self._url}` refused with {status}; look at the webhook.")
