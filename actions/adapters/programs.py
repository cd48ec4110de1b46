"""Programs of the operating system, run so that nothing outlives its owner: the one home of `subprocess`.

A program gets its own session and process group. It is ended, the whole group, when its time is over, when the task
that waits for it is cancelled and when its `with` block is left. On Linux the kernel also ends it when this process
dies, even by `kill -9` (PR_SET_PDEATHSIG), unless it was started with `outlive_owner=True`.

Secrets travel in the environment or in files, never in argv: everybody on the machine can read argv. A program sees
a small allow-listed environment plus what it is given, so the bot's own tokens do not leak into it.
"""

import asyncio
import contextlib
import os
import pwd
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from actions.errors import PermanentError, UserError

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
STDERR_KEPT = 8 * 1024  # bytes of standard error that an error carries
DEATH_SIGNALS_NEED = "setpriv"


class ProgramError(PermanentError):
    """A program could not be started, ended with a code other than zero, or ran out of time.

    `code` is None when it never started or was ended by us; a negative code is the signal that ended it.
    The text holds argv[0] and the end of standard error with every secret masked, never the other arguments.
    """

    def __init__(self, program: str, *, code: int | None, stderr: str, reason: str | None = None) -> None:
        self.program = program
        self.code = code
        self.stderr = stderr
        said = f": {stderr.strip()}" if stderr.strip() else ""
        super().__init__(f"{Path(program).name} {reason or _ending(code)}{said}")


class ProgramTimeoutError(ProgramError):
    """The program was still running after its time and has been ended."""


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@dataclass(frozen=True, kw_only=True)
class Account:
    """The operating system's account that a program runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def named(cls, name: str) -> "Account":
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise UserError(f"this machine has no account `{name}`; create it or name another one") from error
        return cls(
            name=name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            groups=tuple(os.getgrouplist(name, entry.pw_gid)),
            home=entry.pw_dir,
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a program that ended well has written."""

    stdout: bytes
    stderr: str
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", errors="replace")


@dataclass(kw_only=True)
class Tail:
    """The last bytes of a stream, collected by a thread so that a chatty program never blocks on a full pipe."""

    kept: int = STDERR_KEPT
    masks: tuple[str, ...] = ()
    _bytes: bytearray = field(default_factory=bytearray)
    _thread: threading.Thread | None = None

    def follow(self, stream: IO[bytes]) -> None:
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True, name="stderr-tail")
        self._thread.start()

    def _drain(self, stream: IO[bytes]) -> None:
        # A closed descriptor means that the program's `with` block is over.
        with stream, contextlib.suppress(OSError, ValueError):
            while chunk := stream.read1(64 * 1024):  # type: ignore[attr-defined]
                self._bytes += chunk
                del self._bytes[: -self.kept]

    def text(self) -> str:
        """Wait briefly for the rest (a grandchild may hold the pipe open for ever) and give the masked text."""
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        return self.masked(bytes(self._bytes))

    def masked(self, text_bytes: bytes) -> str:
        text = text_bytes.decode("utf-8", errors="replace")
        for mask in self.masks:
            text = text.replace(mask, "***")
        return text


class _Leader(subprocess.Popen[bytes]):
    """The first process of a group. It is reaped only once the rest of its group is dead: from then on its number may
    be the group of a stranger (PostgreSQL gives every session one), and must not be signalled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sweeping = threading.Lock()
        super().__init__(*args, **kwargs)

    def poll(self) -> int | None:
        if self.returncode is None and _has_ended(self.pid):
            self.sweep()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while self.returncode is None and not _has_ended(self.pid, block=limit is None):
            if limit is not None and time.monotonic() >= limit:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        self.sweep()
        return self.returncode

    def sweep(self) -> None:
        """End what there is of the group, the leader included, and reap it."""
        with self._sweeping:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                    _has_ended(self.pid, strict=True)
                    os.killpg(self.pid, signal.SIGKILL)
                super().wait()


def _has_ended(pid: int, *, block: bool = False, strict: bool = False) -> bool:
    """Whether our child has ended; it is not reaped, so its number stays its own. With `strict` ChildProcessError is
    raised for one that somebody else has reaped, such as `psutil.wait_procs`."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | (0 if block else os.WNOHANG)) is not None
    except ChildProcessError:
        if strict:
            raise
        return True


class Program:
    """A running program. Leaving its `with` block ends its whole process group, and so does its own end.

    `stdout` and `stdin` are binary pipes where they were asked for, and None otherwise.
    All methods may be called from any thread.
    """

    def __init__(self, name: str, process: _Leader, tail: Tail, log: Path | None) -> None:
        self.name = name
        self._process = process
        self._tail = tail
        self._log = log

    @classmethod
    def start(
        cls,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        stdin: bool | IO[bytes] = False,
        stdout: bool | IO[bytes] = False,
        stdout_block: int = 0,
        log: Path | None = None,
        outlive_owner: bool = False,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> Self:
        """Start a program without waiting for it.

        `env` and `secrets` join the allow-listed environment; values of `secrets` are masked in errors.
        `account` needs root. `log` appends standard output and standard error to a file instead of keeping a tail;
        `stdout=True` then still gives a pipe. `stdout_block` is how many bytes the C library of the program gathers
        before it writes them there, instead of 4096; best effort. `death_signal` is what the kernel sends when this
        process dies.
        Raises ProgramError when there is no such program or it cannot be started.
        """
        words = [str(word) for word in argv]
        environment = _environment(env or {}, secrets or {}, account)
        found = shutil.which(words[0], path=environment.get("PATH"))
        if found is None:
            raise ProgramError(words[0], code=None, stderr="", reason="is not installed or may not be executed")
        command = [*_buffer_prefix(stdout_block), found, *words[1:]]
        if not outlive_owner:
            command = [*_death_prefix(death_signal), *command]
        tail = Tail(masks=tuple(value for value in (secrets or {}).values() if len(value) > 3))
        with contextlib.ExitStack() as stack:
            errors: int | IO[bytes] = subprocess.PIPE
            out: int | IO[bytes] = subprocess.PIPE if stdout is True else (stdout or subprocess.DEVNULL)
            if log is not None:
                errors = stack.enter_context(log.open("ab"))
                out = errors if stdout is False else out
            try:
                process = _spawn(
                    lambda: _Leader(
                        command,
                        env=environment,
                        cwd=cwd,
                        stdin=subprocess.PIPE if stdin is True else (stdin or subprocess.DEVNULL),
                        stdout=out,
                        stderr=errors,
                        start_new_session=True,
                        user=account.uid if account else None,
                        group=account.gid if account else None,
                        extra_groups=account.groups if account else None,
                    )
                )
            except OSError as error:
                reason = f"could not be started ({error.strerror})"
                raise ProgramError(words[0], code=None, stderr="", reason=reason) from error
        if process.stderr is not None:
            tail.follow(process.stderr)
            process.stderr = None  # `communicate` would read beside the tail
        return cls(words[0], process, tail, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        return self._process.stdout

    def code(self) -> int | None:
        """The exit code, or None while it runs. What it has left of its group is ended with it."""
        return self._process.poll()

    def stderr(self) -> str:
        """The end of standard error so far, secrets masked."""
        if self._log is None:
            return self._tail.text()
        with self._log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - STDERR_KEPT))
            return self._tail.masked(stream.read())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program alone. Nothing happens when it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the whole process group at once and reap the program."""
        self._process.sweep()

    def stop(self, *, grace: timedelta, number: signal.Signals = signal.SIGTERM) -> bool:
        """Ask it to end; after `grace` end the group by force. True when it went by itself."""
        self.send(number)
        try:
            self._process.wait(grace.total_seconds())
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def wait(self, timeout: timedelta | None = None) -> int:
        """Wait for its end and give the exit code. After `timeout` it is ended and ProgramTimeoutError raised."""
        try:
            return self._process.wait(timeout.total_seconds() if timeout else None)
        except subprocess.TimeoutExpired as error:
            raise self._overdue(timeout) from error

    def check(self, timeout: timedelta | None = None) -> None:
        """Wait for its end and raise ProgramError unless it ended with zero."""
        code = self.wait(timeout)
        if code != 0:
            raise ProgramError(self.name, code=code, stderr=self.stderr())

    def communicate(self, stdin: bytes | None = None, timeout: timedelta | None = None) -> bytes:
        """Write `stdin`, read standard output to its end and check the exit code."""
        try:
            out, _ = self._process.communicate(stdin, timeout.total_seconds() if timeout else None)
        except subprocess.TimeoutExpired as error:
            raise self._overdue(timeout) from error
        self.check()
        return out or b""

    def _overdue(self, timeout: timedelta | None) -> ProgramTimeoutError:
        self.kill()
        seconds = timeout.total_seconds() if timeout else 0.0
        reason = f"was ended after {seconds:g} s, its time limit"
        return ProgramTimeoutError(self.name, code=None, stderr=self.stderr(), reason=reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self.stdin, self.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a full pipe that nobody reads any more
                    pipe.close()


def run_in_thread(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: Account | None = None,
    stdin: bytes | None = None,
    timeout: timedelta,
) -> Output:
    """Run a program to its end and block meanwhile: for code that already is in a thread. Errors as `run`."""
    begun = time.monotonic()
    with Program.start(
        argv, env=env, secrets=secrets, cwd=cwd, account=account, stdin=stdin is not None, stdout=True
    ) as program:
        out = program.communicate(stdin, timeout)
        return Output(stdout=out, stderr=program.stderr(), seconds=time.monotonic() - begun)


async def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: Account | None = None,
    stdin: bytes | None = None,
    timeout: timedelta,
) -> Output:
    """Run a program to its end and give what it wrote.

    Raises ProgramError when it cannot be started or ends with a code other than zero, ProgramTimeoutError after
    `timeout`. When the task is cancelled, the whole process group is dead before CancelledError leaves.
    """
    begun = time.monotonic()
    with Program.start(
        argv, env=env, secrets=secrets, cwd=cwd, account=account, stdin=stdin is not None, stdout=True
    ) as program:
        end = asyncio.get_running_loop().run_in_executor(None, program.communicate, stdin, timeout)
        try:
            out = await asyncio.shield(end)
        except asyncio.CancelledError:
            program.kill()
            with contextlib.suppress(ProgramError):
                await end
            raise
        return Output(stdout=out, stderr=program.stderr(), seconds=time.monotonic() - begun)


def _environment(env: Mapping[str, str], secrets: Mapping[str, str], account: Account | None) -> dict[str, str]:
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    if account is not None:
        environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    return {**environment, **env, **secrets}


def _death_prefix(number: signal.Signals) -> list[str]:
    # setpriv (util-linux) and not preexec_fn: Python code between fork and exec can hang in a process with threads.
    # The kernel forgets the wish when credentials change, so it comes after `user=`.
    # An owner that dies in the millisecond before `setpriv` has asked leaves the program behind.
    setpriv = shutil.which(DEATH_SIGNALS_NEED) if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", number.name.removeprefix("SIG"), "--"] if setpriv else []


def _buffer_prefix(size: int) -> list[str]:
    stdbuf = shutil.which("stdbuf") if size else None  # coreutils
    return [stdbuf, f"--output={size}"] if stdbuf else []


class _Spawner:
    """One thread that starts all programs.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends. A thread of a pool, or of a loop that is closed, would
    take the programs along; this one lives as long as the process.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._orders: queue.SimpleQueue[tuple[Callable[[], _Leader], Future[_Leader]]]
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="program-spawner").start()

    def spawn(self, order: Callable[[], _Leader]) -> _Leader:
        answer: Future[_Leader] = Future()
        self._orders.put((order, answer))
        return answer.result()

    def _serve(self) -> None:
        while True:
            order, answer = self._orders.get()
            try:
                answer.set_result(order())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                answer.set_exception(error)
            # A reference kept here until the next order would keep pipes open.
            del order, answer


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _spawn(order: Callable[[], _Leader]) -> _Leader:
    global _spawner  # noqa: PLW0603 - one thread for the process; made at first use, anew after a fork
    with _spawner_lock:
        if _spawner is None or _spawner.owner != os.getpid():
            _spawner = _Spawner()
        spawner = _spawner
    return spawner.spawn(order)
