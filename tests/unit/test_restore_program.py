"""`restore.py`, which works without the bot, against what the bot itself does."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.adapters.postgres_fingerprint import LARGE_OBJECTS
from actions.backup.archive import readable
from actions.backup.catalogue import database_prefix
from actions.backup.manifest import SignedManifest
from actions.backup.physical import Lsn, PhysicalManifest, RecoveryTarget
from actions.backup.sealed import SealedKind, Sealer, What
from actions.backup.segments import Segment
from actions.backup.signing import Signed
from actions.byhand import restore
from actions.site import BackupPolicy
from actions.steps.stored_chain import replay_by_hand
from tests.dump_world import Keys
from tests.fakes.manifests import a_manifest
from tests.fakes.physical_world import a_base

PROGRAM = Path(restore.__file__)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def test_it_uses_nothing_but_python_itself() -> None:
    names = set()
    for node in ast.walk(ast.parse(PROGRAM.read_text(), feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names <= sys.stdlib_module_names
    ran = subprocess.run([sys.executable, "-I", "-S", PROGRAM, "--help"], check=True, capture_output=True, text=True)
    assert "without the bot" in ran.stdout


@settings(max_examples=25)
@given(payload=st.binary(max_size=200), flip=st.integers(0, 511))
def test_a_signature_holds_for_exactly_what_was_signed(payload: bytes, flip: int) -> None:
    key = Ed25519PrivateKey.generate()
    signer = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    raw = bytearray(key.sign(payload))
    assert restore.holds(payload, signer, base64.b64encode(raw).decode())
    assert not restore.holds(payload + b"x", signer, base64.b64encode(raw).decode())
    raw[flip // 8] ^= 1 << flip % 8
    assert not restore.holds(payload, signer, base64.b64encode(raw).decode())
    assert not restore.holds(payload, Keys().signer, base64.b64encode(key.sign(payload)).decode())


@pytest.mark.parametrize("spoiled", ["", "no base64", base64.b64encode(bytes(63)).decode(), "AAAA"])
def test_what_is_no_signature_or_no_key_holds_for_nothing(spoiled: str) -> None:
    assert not restore.holds(b"x", Keys().signer, spoiled)
    assert not restore.holds(b"x", spoiled, base64.b64encode(bytes(64)).decode())


@given(JSON)
def test_documents_are_signed_in_the_same_form(value: object) -> None:
    assert restore.canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


def test_manifests_and_headers_are_believed_as_the_bot_believes_them() -> None:
    keys = Keys()
    dump = SignedManifest.sign(a_manifest(), keys.signing).model_dump_json(indent=1).encode()
    base = Signed[PhysicalManifest].sign(a_base("b", datetime.now(UTC)).manifest, keys.signing).body()
    what = What(kind=SealedKind.SEGMENT, name="0" * 24, system_id="7", timeline_id=1)
    line = (
        Sealer((keys.recipient,), keys.signing).seal(what, io.BytesIO(b"x"), datetime.now(UTC))[1].partition(b"\n")[0]
    )
    for body, field, kind in (
        (dump, "manifest", b""),
        (base, "document", b"PhysicalManifest\n"),
        (line, "header", b""),
    ):
        assert restore.trusted("it", body, field, kind, [keys.signer])
        with pytest.raises(restore.Stop, match="--trust does not name"):
            restore.trusted("it", body, field, kind, [Keys().signer])
        changed: dict[str, Any] = json.loads(body)
        changed[field]["format"] = 2
        with pytest.raises(restore.Stop, match="changed or forged"):
            restore.trusted("it", json.dumps(changed).encode(), field, kind, [keys.signer])
        with pytest.raises(restore.Stop, match="changed or cut off"):
            restore.trusted("it", body[:-3], field, kind, [keys.signer])


@given(number=st.integers(0, 1 << 20), timeline=st.integers(1, 99), size=st.sampled_from([1 << 20, 1 << 24, 1 << 30]))
def test_segments_have_the_names_that_postgresql_gives_them(number: int, timeline: int, size: int) -> None:
    name = str(Segment(timeline, number, size))
    assert restore.segment_name(timeline, number, size) == name
    assert restore.segment_number(name, size) == number
    assert restore.number_of(str(Lsn(number * size + 40))) == number * size + 40


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:29:58.400000+00:00",
        "2026-11-23T10:29:58.4Z",
        "2026-11-23 10:29:58.4 UTC",
        "2026-11-23 10:29:58.40000+00",
        "2026-11-23 11:29:58.4000009+01",
        "2026-11-23 05:59:58.4-04:30",
    ],
)
def test_moments_are_read_as_people_and_psql_write_them(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(datetime):
        """As before Python 3.11."""

        @classmethod
        def fromisoformat(cls, text: str) -> datetime:  # type: ignore[override]
            if not re.fullmatch(r"\S{10}.\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?([+-]\d\d:\d\d)?", text):
                raise ValueError(text)
            return datetime.fromisoformat(text)

    monkeypatch.setattr(restore, "dt", SimpleNamespace(datetime=Older))
    assert restore.moment(text) == datetime(2026, 11, 23, 10, 29, 58, 400000, UTC)
    for unclear in ("2026-11-23", "2026-11-23 10:29:58.4", "now"):
        with pytest.raises(ValueError, match=r"zone|2026|now"):
            restore.moment(unclear)


def test_what_manifests_count_besides_tables_has_the_same_name() -> None:
    assert restore.LARGE_OBJECTS == LARGE_OBJECTS


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
def test_folders_and_tables_are_named_as_the_bot_names_them(name: str) -> None:
    policy = BackupPolicy(
        database=name, bucket="b", prefix="", recipients=("r",), identity="", signing_key="", trusted_signers=()
    )
    assert restore.folder_of(name) == database_prefix(policy)
    quoted = '"' + name.replace('"', '""') + '"'
    assert restore._table(readable(name, name)) == f"{quoted}.{quoted}"


def test_a_server_is_kept_apart_from_production_as_the_plan_s_own_commands_do() -> None:
    lines = replay_by_hand(RecoveryTarget(latest=True), superuser="postgres", restore_command="")
    [printed] = [shlex.split(line.partition(" >> ")[0])[2:] for line in lines if "printf" in line]
    told = {name: value.strip("'") for name, _, value in (line.partition(" = ") for line in printed)}
    assert {name: value for name, value in told.items() if name != "unix_socket_directories"} == restore.ALONE
