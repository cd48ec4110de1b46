"""The person's own ssh-keygen: plain keys, a passphrase, an agent; and an auditor who has nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from actions.adapters import ssh_keygen
from actions.adapters.programs import Program, ProgramError, run
from actions.errors import UserError
from bot.openssh import allowed_key, ssh_signature
from bot.services.statements import NAMESPACE, Proof, statement
from tests.fixtures.ssh_keys import MakeKey, public_line
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration

SAID = statement(
    act="approve",
    subject="plan k7m2n3p4q5",
    digest="ab" * 32,
    person="ona",
    target="shop",
    reason="seen, größer",
    at=datetime(2026, 11, 23, 12, tzinfo=UTC),
)


def holds(armored: str, key: Path) -> bool:
    found = ssh_signature(armored)
    found.check(SAID.text.encode(), NAMESPACE)
    return found.key == allowed_key(public_line(key)).key


async def test_a_plain_key_signs_exactly_these_words(make_key: MakeKey) -> None:
    key = make_key("ona")
    assert holds(await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=key), key)


async def test_a_passphrase_is_asked_of_the_person(
    make_key: MakeKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key("ona", passphrase="canary passphrase")
    helper = tmp_path / "askpass"
    helper.write_text("#!/bin/sh\necho 'canary passphrase'\n")
    helper.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(helper))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    assert holds(await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=key), key)
    helper.write_text("#!/bin/sh\necho wrong\n")
    with pytest.raises(UserError, match="could not sign") as caught:
        await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=key)
    assert "canary" not in str(caught.value)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    socket = tmp_path / "agent"
    with Program.start(["ssh-agent", "-D", "-a", str(socket)]):
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        yield socket


async def test_an_agent_signs_for_a_key_that_is_not_on_this_disk(make_key: MakeKey, agent: Path) -> None:
    key = make_key("ona")
    await until(agent.exists)
    await run(["ssh-add", "-q", str(key)], env={"SSH_AUTH_SOCK": str(agent)}, timeout=timedelta(seconds=10))
    key.unlink()
    public = key.with_name("ona.pub")
    assert holds(await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=public), key)


async def test_a_missing_key_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ssh-keygen -t ed25519"):
        await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=tmp_path / "none")


async def test_an_auditor_checks_a_proof_with_ssh_keygen_alone(make_key: MakeKey, tmp_path: Path) -> None:
    key = make_key("ona")
    proof = Proof(statement=SAID, armored=await ssh_keygen.sign(SAID.text, namespace=NAMESPACE, key=key)).text
    said, armored = proof.split("\n\n", 1)
    (tmp_path / "1.sig").write_text(armored)
    (tmp_path / "allowed_signers").write_text(f'ona valid-after="20260101" {public_line(key)}\n')
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "ona", "-n", NAMESPACE, "-s", "1.sig"]
    limit = timedelta(seconds=10)
    assert "Good" in (await run(command, stdin=said.encode(), cwd=tmp_path, timeout=limit)).text
    with pytest.raises(ProgramError):
        await run(command, stdin=said.replace("shop", "ship").encode(), cwd=tmp_path, timeout=limit)
