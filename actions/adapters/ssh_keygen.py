"""Signing with a person's own key, by the person's own `ssh-keygen`: agents, passphrases and FIDO tokens work as
everywhere else, and the private key never comes near the bot.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

from actions.adapters.programs import INHERITED
from actions.errors import UserError

ASKING = (
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "SSH_ASKPASS_REQUIRE",
    "SSH_SK_PROVIDER",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "TERM",
)
"""What `ssh-keygen` needs to reach the agent, the token and the person."""

LIMIT = timedelta(minutes=5)
"""For typing a passphrase or touching a token."""


async def sign(text: str, *, namespace: str, key: Path) -> str:
    """The armored signature of exactly these words. `key` is a private key, or the public one of a key in the agent.
    Raises UserError when there is none; `ssh-keygen` has told the reason on standard error by then."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UserError("`ssh-keygen` is not installed on this machine; install the OpenSSH client and sign again.")
    return await asyncio.to_thread(_run, program, text, namespace, key)


def _run(program: str, text: str, namespace: str, key: Path) -> str:
    key = key.expanduser()
    if not key.exists():
        raise UserError(f"There is no key `{key}`; name yours with `--key`, or make one: `ssh-keygen -t ed25519`.")
    environment = {name: os.environ[name] for name in (*INHERITED, *ASKING) if name in os.environ}
    try:
        # Not `programs.run`: a session of its own has no terminal, and there would be nobody to ask for the passphrase.
        done = subprocess.run(
            [program, "-Y", "sign", "-q", "-n", namespace, "-f", str(key)],
            input=text.encode(),
            stdout=subprocess.PIPE,
            env=environment,
            timeout=LIMIT.total_seconds(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"`ssh-keygen` waited {LIMIT} for you; sign again with passphrase or token at hand.") from error
    except OSError as error:
        raise UserError(f"`ssh-keygen` could not be started: {error.strerror}.") from error
    if done.returncode != 0:
        raise UserError(f"`ssh-keygen` could not sign with `{key}`; it has said why above. Put that right, sign again.")
    return done.stdout.decode("ascii", errors="replace")
