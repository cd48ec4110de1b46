"""What every Secrets keeps: references of the environment and of files, and the fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.adapters.secrets import SecretReferences
from actions.errors import UserError
from actions.ports import Secrets
from tests.fakes.secrets import MemorySecrets


@pytest.fixture(params=["fake", "real"])
def port(request: pytest.FixtureRequest) -> Secrets:
    if request.param == "fake":
        return MemorySecrets({"env:GOOD": "the value"})
    return SecretReferences({"GOOD": "the value", "EMPTY": ""})


async def test_known_reference_gives_its_value(port: Secrets) -> None:
    assert await port.resolve("env:GOOD") == "the value"


@pytest.mark.parametrize("ref", ["env:NONE", "env:EMPTY"])
async def test_reference_without_value_is_named(port: Secrets, ref: str) -> None:
    with pytest.raises(UserError, match=ref):
        await port.resolve(ref)


async def test_what_is_no_reference_is_told(port: Secrets) -> None:
    with pytest.raises(UserError, match="no reference"):
        await port.resolve("plain-text")


async def test_files_lose_their_last_line_end_and_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("line 1\nline 2\n")
    port = SecretReferences({})
    assert await port.resolve(f"file:{path}") == "line 1\nline 2"
    path.write_text("rotated")
    assert await port.resolve(f"file:{path}") == "rotated"
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        await port.resolve(f"file:{path}")
    path.unlink()
    with pytest.raises(UserError, match="has no file"):
        await port.resolve(f"file:{path}")


async def test_forms_of_other_keepers_are_checked() -> None:
    port = SecretReferences({})
    for ref in ("vault:secret/data/x", "vault:#k", "k8s:only/two", "aws:x"):
        with pytest.raises(UserError, match=ref):
            await port.resolve(ref)
