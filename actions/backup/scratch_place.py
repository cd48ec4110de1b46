"""Where a scratch instance lies on disk: one folder, which tells by itself what it is and when it may go.

<directory>/<id>/claim.json     written first: whose it is, its mark, when it expires (a folder without one is junk)
<directory>/<id>/instance.json  written last, by the restore: what was reached and measured
<directory>/<id>/loaded.json    instead of it, where the server was empty and took a dump for a restore test
<directory>/<id>/data/          PGDATA, with a configuration of ours
<directory>/<id>/wal/           archived segments, fetched; `restore_command` copies from here
<directory>/<id>/follow.json    while it is a standby of the archive: what it was told
<directory>/<id>/fed.json       what was last brought to it
<directory>/<id>/checks.json    what was found of its databases
<directory>/<id>/promoted.json  written before it is promoted: it is a server of its own from then on
<directory>/<id>/opened.json    where applications find it, from then on at every start
<directory>/<id>/machine.json   where its server runs; another machine on the same volume sees no process of it
<directory>/<id>/lock           held by the restore as long as it works, and by whoever promotes or sweeps it
<directory>/<id>/postgres.log
<directory>/.gone/<id>          it was here, and was removed
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime

from actions.backup.dump_test import DumpLoaded
from actions.backup.physical import Check, RecoveryTarget, ScratchRestored
from actions.errors import TemporaryError, UserError
from actions.site import Frozen

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

T = TypeVar("T", bound=Frozen)

HELD_FOR = timedelta(hours=1)
"""How long a machine that has said nothing since still has what it runs. Its worker says it every few minutes."""
LOCK_TRIES, LOCK_PAUSE = 10, 0.02  # somebody may just have looked whether it is held
GONE = ".removed-"  # in the name of a folder that is being removed
FULL = (errno.ENOSPC, errno.EDQUOT)
REMEMBERED = timedelta(days=90)  # how long one that was removed is known to have been here


class Claim(Frozen):
    """Made before the first byte is fetched, so that whatever a crash leaves can be told and removed."""

    id: str
    server: str
    mark: str
    made_at: AwareDatetime
    expires_at: AwareDatetime
    wanted_bytes: int  # what it was expected to take
    superuser: str = "postgres"  # a role that its data has
    system_id: str = ""  # of the server whose data it is
    port: int = 0  # reserved for it, where the plan file names a range; 0: any that is free


class Follow(Frozen):
    """It is a standby: started again whenever it is found stopped, and never swept."""

    since: AwareDatetime
    delay: timedelta
    timeline_id: int  # where it begins to follow
    lsn: str
    segment_bytes: int
    halting: RecoveryTarget | None = None  # it is being stopped there: nothing is brought, nobody starts it
    replayed_at: AwareDatetime | None = None  # the newest commit that was seen in it
    replayed_lsn: str = ""  # how far it was then
    unsure: bool = False  # it was started from beyond that: commits may be in it that nobody has seen
    raised: Mapping[str, str] = {}  # settings that the primary has raised since


class Fed(Frozen):
    """How far the archive was brought to it."""

    at: AwareDatetime
    timeline_id: int  # the next one begins here
    lsn: str
    way: int  # the timeline id that is followed
    end_lsn: str
    newest_at: AwareDatetime | None = None  # when the archive had the last of it
    problem: str = ""
    stranded: bool = False


class Checked(Frozen):
    """What was found of the databases in it that were looked through."""

    databases: Mapping[str, Check] = {}


class Promotion(Frozen):
    """When it was promoted."""

    at: AwareDatetime


class Opened(Frozen):
    """The address that applications are given; the same at every start."""

    host: str
    port: int


class Holder(Frozen):
    """Whose process the server is."""

    machine: str
    at: AwareDatetime  # when it last said so


def this_machine() -> str:
    """Workers on one volume have names of their own, as pods do."""
    return socket.gethostname()


class ElsewhereError(UserError):
    """Another machine runs it."""


class ScratchPlace:
    """The folder of one instance. Blocking."""

    def __init__(self, directory: Path, scratch: str) -> None:
        if not _ID.fullmatch(scratch):
            raise UserError(f"`{scratch}` cannot name a scratch instance: use letters, digits, `.`, `_` and `-`.")
        self.folder = directory / scratch

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def wal(self) -> Path:
        return self.folder / "wal"

    def wal_bytes(self) -> int:
        """Of the segments that were brought and not removed yet; one that goes meanwhile counts as nothing."""
        found = 0
        for path in self.wal.glob("*"):
            with suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    def claim(self) -> Claim | None:
        """None where there is no such instance."""
        return _read(self.folder / "claim.json", Claim)

    def restored(self) -> ScratchRestored | None:
        """None while the restore has not ended well."""
        return _read(self.folder / "instance.json", ScratchRestored)

    def loaded(self) -> DumpLoaded | None:
        """None unless a dump was loaded into it completely."""
        return _read(self.folder / "loaded.json", DumpLoaded)

    def checks(self) -> Mapping[str, Check]:
        """What was found of each database of the plan file that was looked through."""
        checked = _read(self.folder / "checks.json", Checked)
        return {} if checked is None else checked.databases

    def write_check(self, database: str, check: Check) -> None:
        """In place of the one before."""
        _write(self.folder / "checks.json", Checked(databases={**self.checks(), database: check}))

    def forget_checks(self) -> None:
        (self.folder / "checks.json").unlink(missing_ok=True)

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def promoted(self) -> bool:
        """Whether it is a server of its own, or was about to become one."""
        return (self.folder / "promoted.json").exists()

    def write_promoted(self, promotion: Promotion) -> None:
        _write(self.folder / "promoted.json", promotion)

    def follow(self) -> Follow | None:
        """None unless it is a standby."""
        return _read(self.folder / "follow.json", Follow)

    def write_follow(self, follow: Follow) -> None:
        _write(self.folder / "follow.json", follow)

    def drop_follow(self) -> None:
        """It is no standby any more."""
        for name in ("follow.json", "fed.json"):
            (self.folder / name).unlink(missing_ok=True)

    def fed(self) -> Fed | None:
        """None while nothing was brought to it."""
        return _read(self.folder / "fed.json", Fed)

    def write_fed(self, fed: Fed) -> None:
        _write(self.folder / "fed.json", fed)

    def opened(self) -> Opened | None:
        """None while nobody but the bot is let in."""
        return _read(self.folder / "opened.json", Opened)

    def write_opened(self, opened: Opened | None) -> None:
        """None: nobody but the bot from the next start on."""
        if opened is None:
            (self.folder / "opened.json").unlink(missing_ok=True)
        else:
            _write(self.folder / "opened.json", opened)

    # ------------------------------------------------------------ where its server runs

    def elsewhere(self, now: datetime) -> Holder | None:
        """The other machine that runs it, as far as one can know."""
        found = _read(self.folder / "machine.json", Holder)
        if found is None or found.machine == this_machine():
            return None
        # A worker that is away says nothing of a server that outlives it, and two servers in one folder destroy it: of
        # one that people work on, people say that its machine is gone.
        return None if now - found.at > HELD_FOR and not self.promoted else found

    def check_here(self, now: datetime) -> None:
        """Raises ElsewhereError while another machine runs it."""
        if (held := self.elsewhere(now)) is not None:
            wait = "" if self.promoted else f", or wait {HELD_FOR.total_seconds() / 60:.0f} min"
            raise ElsewhereError(
                f"Scratch instance `{self.folder.name}` runs on `{held.machine}`, seen at {held.at:%Y-%m-%d %H:%M:%S} "
                f"UTC, not on `{this_machine()}`. Ask there; if that machine is gone, remove "
                f"`{self.folder / 'machine.json'}`{wait}."
            )

    def write_holder(self, now: datetime) -> None:
        """This machine runs it."""
        _write(self.folder / "machine.json", Holder(machine=this_machine(), at=now))

    def drop_holder(self) -> None:
        """This machine runs it no more."""
        found = _read(self.folder / "machine.json", Holder)
        if found is not None and found.machine == this_machine():
            (self.folder / "machine.json").unlink(missing_ok=True)

    # ------------------------------------------------------------ who is at work in it

    def busy(self) -> bool:
        """Whether a restore is at work in it."""
        try:
            with (self.folder / "lock").open("a") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it while it is made, promoted or swept; the kernel lets go when this process dies. Raises UserError when
        it is held."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as stream:
            for left in reversed(range(LOCK_TRIES)):
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if not left:
                        text = f"Somebody is at work in scratch instance `{self.folder.name}`. Wait for it."
                        raise UserError(text) from error
                    time.sleep(LOCK_PAUSE)
            yield

    def clear(self) -> None:
        """Remove what is in it but the lock, its claim last: what is left half removed can still be told."""
        for path in sorted(self.folder.glob("*"), key=lambda path: path.name == "claim.json"):
            if path.is_dir() and not path.is_symlink():
                _remove(path)
            elif path.name != "lock":
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the whole folder. It is gone at once: nobody sees it half removed."""
        if not self.folder.exists():
            return
        # A full disk has no room for the note either; what fills it goes all the same, and then there is room.
        with suppress(OSError):
            self._note()
        gone = self.folder.with_name(f".{self.folder.name}{GONE}{time.time_ns()}")
        try:
            self.folder.rename(gone)
        except FileNotFoundError:
            return
        _remove(gone)
        with suppress(OSError):
            self._note()

    def _note(self) -> None:
        self._trace.parent.mkdir(exist_ok=True)
        self._trace.touch()

    @property
    def removed(self) -> bool:
        """Whether it was here and is gone."""
        return self._trace.exists() and not self.folder.exists()

    @property
    def _trace(self) -> Path:
        return self.folder.parent / ".gone" / self.folder.name

    @staticmethod
    def remove_rest(directory: Path) -> None:
        """What a removal has left that was broken off, and what was removed long ago."""
        for folder in directory.glob(f".*{GONE}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for trace in directory.glob(".gone/*"):
            if time.time() - trace.stat().st_mtime > REMEMBERED.total_seconds():
                trace.unlink(missing_ok=True)

    def write_claim(self, claim: Claim) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._trace.unlink(missing_ok=True)
        _write(self.folder / "claim.json", claim)

    def write_restored(self, restored: ScratchRestored) -> None:
        _write(self.folder / "instance.json", restored)

    def write_loaded(self, loaded: DumpLoaded) -> None:
        _write(self.folder / "loaded.json", loaded)

    @property
    def whole(self) -> bool:
        """Whether what made it has ended well."""
        return self.restored() is not None or self.loaded() is not None

    @classmethod
    def all(cls, directory: Path) -> list[ScratchPlace]:
        """Every folder there is, by name."""
        if not directory.exists():
            return []
        found = [path.name for path in sorted(directory.iterdir()) if path.is_dir()]
        return [cls(directory, name) for name in found if _ID.fullmatch(name)]

    @staticmethod
    def expired(claim: Claim, now: datetime) -> bool:
        return claim.expires_at <= now


def _remove(folder: Path) -> None:
    """Whole; a writer that was just told to stop may still add a file."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(folder)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def _write(path: Path, value: Frozen) -> None:
    fresh = path.with_name(path.name + ".part")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(value.model_dump_json())
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError as error:
        why = "its disk is full. Free space there" if error.errno in FULL else f"{error.strerror}. Look at its folder"
        raise TemporaryError(f"`{path}` cannot be written: {why}, then try again.") from error
