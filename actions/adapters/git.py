"""Mirrors of repositories, by the program `git`: bare, without a work tree, so that nothing of a repository ever runs.

Whoever can push decides what is in a repository. So: no hooks, no configuration but ours, one transport (that of the
plan's URL), no redirects, no prompts, no submodules, nothing checked out. The token travels in the environment, as an
HTTP header for this URL alone; argv and files have none.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from actions.adapters.programs import Output, ProgramError, ProgramTimeoutError, run
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.manifests import Git, RepositoryFile
from actions.ports import Secrets
from actions.site import ManifestsPolicy, SecretRef

QUICK, LONG = timedelta(minutes=1), timedelta(minutes=10)
LARGEST, MOST = 1 << 20, 64 << 20
"""Bytes of one manifest, and of all of them."""

READ = (".yaml", ".yml", ".json")
SETTINGS = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "gc.auto=0"),
    *("-c", "http.followRedirects=false"),
    *("-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=60"),
)
KEPT = ("refs/heads", "refs/tags", "refs/kept")
OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
REFUSED = ("Authentication failed", "could not read Username", "error: 401", "error: 403", "not found", "not appear to")
BROKEN = "hung up unexpectedly"
REDIRECTED = "unable to update url base from redirection"


class RejectedError(PermanentError):
    """The repository was reached, and took nothing of a push."""


class GitMirrors(Git):
    """`directory` holds one bare repository for each name of the plan."""

    def __init__(self, directory: Path, secrets: Secrets) -> None:
        self._directory, self._secrets = directory, secrets

    async def fetch(self, policy: ManifestsPolicy) -> str | None:
        await self._prepare(policy)
        await self._ask(
            policy,
            policy.password,
            *("fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"),
            *("--no-auto-maintenance", "--end-of-options", policy.url),
            *("+refs/heads/*:refs/incoming/heads/*", "+refs/tags/*:refs/incoming/tags/*"),
        )
        new = await self._refs(policy.name, "refs/incoming")
        old = {**await self._refs(policy.name, "refs/heads"), **await self._refs(policy.name, "refs/tags")}
        changes: list[str] = []
        for ref, commit in old.items():
            now = new.get(ref)
            if now == commit:
                continue
            if now is None or not await self.contains(policy.name, now, commit):
                changes.append(f"update refs/kept/{commit} {commit}")
            if now is None:
                changes.append(f"delete {ref}")
        changes += [f"update {ref} {commit}" for ref, commit in new.items() if old.get(ref) != commit]
        if changes:  # in one transaction: what a branch leaves behind is kept before it moves
            await self._run(policy.name, "update-ref", "--stdin", stdin="\n".join([*changes, ""]).encode())
        return new.get(f"refs/heads/{policy.branch}")

    async def has(self, name: str, commit: str) -> bool:
        return await self._true(name, "cat-file", "-e", f"{object_id(commit)}^{{commit}}")

    async def contains(self, name: str, commit: str, ancestor: str) -> bool:
        return await self._true(name, "merge-base", "--is-ancestor", object_id(ancestor), object_id(commit))

    async def refs(self, name: str) -> str:
        said = await self._run(name, "for-each-ref", "--format=%(refname) %(objectname)", *KEPT)
        return hashlib.sha256(said.stdout).hexdigest()

    async def bundle(self, policy: ManifestsPolicy, commit: str, into: Path) -> None:
        await asyncio.to_thread(into.unlink, missing_ok=True)
        # A bundle has no HEAD where its branch is gone.
        head = await self._true(policy.name, "rev-parse", "--verify", "--quiet", f"refs/heads/{policy.branch}")
        everything = (*(("HEAD",) if head else ()), "--branches", "--tags", "--glob=refs/kept/*")
        await self._run(policy.name, "symbolic-ref", "HEAD", f"refs/heads/{policy.branch}")
        await self._run(policy.name, "bundle", "create", "--quiet", str(into), *everything, timeout=LONG)
        empty = Path(tempfile.mkdtemp(prefix="proof-", dir=self._directory))
        try:
            await git_program(empty, "init", "--quiet", "--bare", "--template=", str(empty))
            await git_program(empty, "bundle", "verify", "--quiet", str(into), timeout=LONG)
            # It says only that nothing before it is needed; taking everything out of it checks every byte.
            await git_program(empty, "fetch", "--quiet", str(into), "+refs/*:refs/*", timeout=LONG, protocol="file")
            await git_program(empty, "rev-list", "--objects", "--quiet", object_id(commit), timeout=LONG)
        except ProgramError as error:
            raise VerificationError(
                f"The bundle of `{policy.name}` at `{commit[:12]}` does not hold: {error}"
            ) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, empty, ignore_errors=True)

    async def files(self, name: str, commit: str, path: str) -> Sequence[RepositoryFile]:
        under = ("--", f"{path.strip('/')}/") if path.strip("/") else ()
        listed = await self._run(name, "ls-tree", "-r", "-z", "--long", "--full-tree", object_id(commit), *under)
        found: list[RepositoryFile] = []
        wanted: list[tuple[str, str]] = []
        total = 0
        for line in filter(None, listed.text.split("\0")):
            facts, _, where = line.partition("\t")
            mode, kind, oid, size = facts.split()
            if mode == "120000" and where.endswith(READ):
                found.append(RepositoryFile(where, None, "is a symbolic link"))
            elif kind == "commit":
                found.append(RepositoryFile(where, None, "is a submodule"))
            elif kind == "blob" and where.endswith(READ):
                if int(size) > LARGEST or total + int(size) > MOST:
                    found.append(RepositoryFile(where, None, "is too large"))
                    continue
                total += int(size)
                wanted.append((where, oid))
        bodies = await self._bodies(name, [oid for _, oid in wanted])
        found += [RepositoryFile(where, bodies[oid]) for where, oid in wanted]
        return sorted(found)

    # ------------------------------------------------------------ git

    async def _prepare(self, policy: ManifestsPolicy) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._place(policy.name)
        await git_program(place, "init", "--quiet", "--bare", "--template=", str(place), bare=False)

    async def _refs(self, name: str, below: str) -> dict[str, str]:
        """By the name in the repository they came from."""
        said = await self._run(name, "for-each-ref", "--format=%(refname) %(objectname)", below)
        lines = (line.split(" ") for line in said.text.splitlines())
        return {ref.replace("refs/incoming/", "refs/", 1): oid for ref, oid in lines}

    async def _bodies(self, name: str, oids: Sequence[str]) -> dict[str, bytes]:
        said = await self._run(name, "cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in oids).encode())
        rest, bodies = said.stdout, {}
        while rest:
            header, _, rest = rest.partition(b"\n")
            oid, _, size = header.decode().split()
            bodies[oid], rest = rest[: int(size)], rest[int(size) + 1 :]
        return bodies

    async def _ask(self, policy: ManifestsPolicy, login: SecretRef, *arguments: str) -> None:
        """Talk to the repository itself. Raises RejectedError where it has read a push and does not take it."""
        secrets: dict[str, str] = {}
        if login:
            token = await self._secrets.resolve(login)
            user = await self._secrets.resolve(policy.username) if policy.username else "git"
            login = base64.b64encode(f"{user}:{token}".encode()).decode()
            secrets = {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{policy.url}.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {login}",
            }
        protocol = urlsplit(policy.url).scheme
        try:
            await git_program(self._place(policy.name), *arguments, timeout=LONG, protocol=protocol, secrets=secrets)
        except ProgramTimeoutError as error:
            raise TemporaryError(f"Repository `{policy.url}` did not answer within {LONG}.") from error
        except ProgramError as error:
            whole = " ".join(error.stderr.split())
            said = whole[:300]
            if REDIRECTED in whole:
                raise UserError(
                    f"Repository `{policy.url}` has moved. Put its new address into the plan file."
                ) from error
            if error.code == 1 and "rejected]" in whole:
                raise RejectedError(whole[:600]) from error
            if any(word in whole for word in REFUSED):
                raise UserError(
                    f"Repository `{policy.url}` refuses: {said} Look at its address and at the token."
                ) from error
            if error.code == 128 or BROKEN in whole:  # whether a push was taken is seen by looking again
                raise TemporaryError(f"Repository `{policy.url}` does not answer: {said}") from error
            raise PermanentError(f"The mirror of `{policy.url}` failed: {said or error}") from error

    async def _run(self, name: str, *arguments: str, stdin: bytes | None = None, timeout: timedelta = QUICK) -> Output:
        return await git_program(self._place(name), *arguments, stdin=stdin, timeout=timeout)

    async def _true(self, name: str, *arguments: str) -> bool:
        if not self._place(name).is_dir():
            return False
        try:
            await self._run(name, *arguments)
        except ProgramTimeoutError:
            raise
        except ProgramError as error:
            if error.code in (1, 128):  # no, and: there is no such object
                return False
            raise
        return True

    def _place(self, name: str) -> Path:
        return self._directory / f"{name}.git"


async def git_program(
    place: Path,
    *arguments: str,
    stdin: bytes | None = None,
    timeout: timedelta = QUICK,
    protocol: str = "",
    secrets: Mapping[str, str] | None = None,
    bare: bool = True,
) -> Output:
    program = shutil.which("git")
    if program is None:
        raise UserError("`git` is not installed on the worker's machine. Install it (2.38 or newer).")
    environment = {
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GIT_ALLOW_PROTOCOL": protocol or "none",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C",
    }
    where = (f"--git-dir={place}",) if bare else ()
    argv = [program, *SETTINGS, *where, *arguments]
    return await run(argv, env=environment, secrets=secrets, stdin=stdin, timeout=timeout)


def object_id(name: str) -> str:
    if OBJECT.fullmatch(name) is None:
        raise UserError(f"`{name}` is no commit: give its whole hash.")
    return name
