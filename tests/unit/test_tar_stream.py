"""A tar stream, cut anywhere; and what must never come out of one."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from actions.backup.stages import Channel
from actions.backup.tar_stream import Extraction, FileList, TarReader
from actions.errors import UserError, VerificationError

FILES = {
    "backup_label": b"x" * 511,
    "base/5/PG_VERSION": b"18\n",
    "base/5/16384": bytes(range(256)) * 4096,
    "empty": b"",
    "global/pg_control": b"c" * 512,
    "backup_manifest": b'{"a": 1}',
}


def a_tar(*extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo("pg_wal")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, body in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"evil" * 2)) if member.isreg() else tar.addfile(member)
    return out.getvalue()


def extract(body: bytes, folder: Path, *, seed: int = 0, whole: bool = True) -> None:
    channel, cuts = Channel(room=1 << 30), random.Random(seed)
    place = 0
    while place < len(body):
        size = cuts.choice([1, 7, 511, 512, 513, 4096, 100_000])
        channel.put(body[place : place + size])
        place += size
    channel.end()
    Extraction(folder).run(channel)


def test_two_at_once_make_the_folder_above_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of one chain are unpacked side by side: another has made the folder after this one found none."""
    found_none = Path.is_dir

    def is_dir(folder: Path) -> bool:
        there = found_none(folder)
        if folder == tmp_path / "members" and not there:
            folder.mkdir()
        return there

    monkeypatch.setattr(Path, "is_dir", is_dir)
    extract(a_tar(), tmp_path / "members" / "full")
    assert (tmp_path / "members" / "full" / "backup_label").read_bytes() == FILES["backup_label"]


@pytest.mark.parametrize("seed", range(4))
def test_what_goes_in_comes_out_wherever_it_is_cut(tmp_path: Path, seed: int) -> None:
    extract(a_tar(), tmp_path / "data", seed=seed)
    found = {
        str(path.relative_to(tmp_path / "data")): path.read_bytes()
        for path in (tmp_path / "data").rglob("*")
        if path.is_file()
    }
    assert found == FILES
    assert (tmp_path / "data" / "pg_wal").is_dir()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "data").rglob("*")} == {0}


def test_the_list_of_files_is_found_in_passing() -> None:
    found = FileList()
    reader = TarReader(found)
    for place in range(0, len(a_tar()), 1000):
        reader.feed(a_tar()[place : place + 1000])
    reader.end()
    assert found.body == FILES["backup_manifest"]


def a_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = 8 if kind == tarfile.REGTYPE else 0
    return member


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (a_member("../evil"), "leads out of its folder"),
        (a_member("base/../../evil"), "leads out of its folder"),
        (a_member("/etc/evil"), "leads out of its folder"),
        (a_member("base/evil", tarfile.SYMTYPE, "/etc"), "neither file nor directory"),
        (a_member("base/evil", tarfile.LNKTYPE, "backup_label"), "neither file nor directory"),
        (a_member("evil", tarfile.CHRTYPE), "neither file nor directory"),
        (a_member("backup_label"), "twice"),
    ],
)
def test_nothing_leaves_the_folder_and_no_link_is_made(tmp_path: Path, member: tarfile.TarInfo, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        extract(a_tar(member), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("kept", [100, 5000, -2048, -20_000])
def test_a_stream_that_was_cut_off(tmp_path: Path, kept: int) -> None:
    body = a_tar().rstrip(b"\0") if kept == -2048 else a_tar()
    with pytest.raises(VerificationError, match="cut off"):
        extract(body[:kept], tmp_path / "data")


def test_what_is_no_tar(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no tar archive"):
        extract(b"nonsense" * 200, tmp_path / "data")


def test_a_folder_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        extract(a_tar(), tmp_path)
