"""Amendments, exports with their proofs, and the verifier as an auditor starts it."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text

from actions.adapters.witness_file import FileWitness
from actions.adapters.witness_s3 import S3Witness
from actions.errors import UserError
from actions.site import Bucket
from bot.bootstrap import export_log
from bot.ports import ReplyTo, TimelinePage
from bot.router import Router
from bot.settings import Settings
from bot.slack.views.report import timeline_message
from tests.fakes.secrets import MemorySecrets
from tests.fixtures.ledger import LedgerForTests
from tests.fixtures.office import CHANNEL, OfficeForTests
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def sealed(office: OfficeForTests) -> AsyncIterator[LedgerForTests]:
    made = LedgerForTests(office.memory, office.clock)
    yield made
    await made.as_clock.dispose()


async def say(office: OfficeForTests, words: str, *, person: str = "olivia") -> None:
    command = Router().parse_slash("/dr-incident", words)
    await office.desk.ask(office.who(person), command, reply=ReplyTo(channel=CHANNEL, user=person))


async def number_of(office: OfficeForTests, said: str) -> int:
    async with office.memory.session() as session:
        return int(await session.scalar(text("SELECT seq FROM timeline_entry WHERE text = :said"), {"said": said}) or 0)


def verify(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bot.cli", "timeline", "verify", *arguments]
    clean = {"PATH": "/usr/bin:/bin", **(environment or {})}
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, check=False)


async def test_an_amendment_stands_beside_what_it_corrects(office: OfficeForTests) -> None:
    await say(office, "open Orders are gone")
    await say(office, "note the primary has lost its disk")
    number = await number_of(office, "the primary has lost its disk")
    await say(office, f"amend {number} it was the &lt;b&gt;secondary&lt;/b&gt;", person="daniel")
    document = json.loads(await office.incidents.exported(1, "json"))
    noted = next(line for line in document["timeline"] if line["seq"] == number)
    assert noted["text"] == "the primary has lost its disk"
    [beside] = noted["amendments"]
    assert "Daniel Dietrich" in beside
    assert beside.endswith("it was the <b>secondary</b>")
    last = document["timeline"][-1]
    assert (last["kind"], last["text"]) == ("amendment", f"Amends No. {number}: it was the <b>secondary</b>")
    assert "it was the &lt;b&gt;secondary&lt;/b&gt;" in await office.incidents.exported(1, "html")
    assert "Amended by No." in await office.incidents.exported(1, "md")
    page = TimelinePage(incident="Orders", number=1, lines=tuple(document["timeline"]))
    shown = json.dumps(timeline_message(page))
    assert f"No. {number} " in shown
    assert "Amended by No." in shown

    with pytest.raises(UserError, match="has no entry 9999"):
        await say(office, "amend 9999 nothing")
    amendment = await number_of(office, "it was the <b>secondary</b>")
    with pytest.raises(UserError, match=rf"amend entry {number} again"):
        await say(office, f"amend {amendment} no, the primary")


async def test_every_export_of_an_incident_can_be_verified_without_the_bot(
    office: OfficeForTests, sealed: LedgerForTests, tmp_path: Path
) -> None:
    await say(office, "open Orders are gone")
    await say(office, "note it's <odd> | &amp; “quoted” \\ end")
    await say(office, "note not sealed in time")
    witness = FileWitness("file", tmp_path / "witness.jsonl")
    sealer = sealed.sealer()
    await sealer.seal()
    await sealer.publish(witness, after=0)
    forms = {form: await office.incidents.exported(1, form) for form in ("jsonl", "md", "json", "html")}
    found = {
        "jsonl": forms["jsonl"],
        "md": re.findall(r"```\n(.*?)\n```", forms["md"], re.DOTALL)[0] + "\n",
        "json": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in json.loads(forms["json"])["proof"]),
        "html": html.unescape(re.findall(r"<pre>(.*?)</pre>", forms["html"], re.DOTALL)[0]),
    }
    assert "drbot timeline verify" in forms["html"]
    assert "drbot timeline verify" in forms["md"]
    for form, proof in found.items():
        path = tmp_path / f"{form}.jsonl"
        path.write_text(proof)
        asked = (str(path), "--checkpoints", str(tmp_path / "witness.jsonl"), "--key", sealed.public)
        done = verify(*asked)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 entries; witnesses cover 3." in done.stdout
        path.write_text(proof.replace("odd", "even"))
        done = verify(*asked)
        assert done.returncode == 1, form
        assert "BAD: edited entry: position 2" in done.stdout


async def test_an_auditor_needs_the_database_a_bucket_and_the_public_key(
    office: OfficeForTests, sealed: LedgerForTests, s3: S3, bucket: str, tmp_path: Path
) -> None:
    locked = f"{bucket}-audit"
    s3.client().create_bucket(Bucket=locked, ObjectLockEnabledForBucket=True)
    secrets = MemorySecrets({"env:A": s3.access_key, "env:S": s3.secret_key})
    place = Bucket(name=locked, endpoint=s3.endpoint, access_key="env:A", secret_key="env:S")
    witness = S3Witness("vault", place, "record/", secrets, keep=timedelta(seconds=1))
    sealer = sealed.sealer()
    for number in range(3):
        await sealed.note(f"note {number}")
        await sealer.seal()
    await sealer.publish(witness, after=0)
    witness.close()
    environment = {
        "DATABASE_URL": office.memory.url,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_DEFAULT_REGION": s3.region,
    }
    asked = ("--checkpoints", f"s3://{locked}/record/", "--endpoint", s3.endpoint, "--key", sealed.public)
    done = verify(*asked, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 entries; witnesses cover 4." in done.stdout

    exported: list[str] = []
    settings = Settings.model_validate({"database_url": office.memory.url})
    assert await export_log(settings, exported.append) == 4
    path = tmp_path / "log.jsonl"
    path.write_text("".join(exported[:-1]))
    done = verify(str(path), *asked, environment=environment)
    assert done.returncode == 1
    assert "BAD: truncated tail: position 3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Name an export, or the bot's database"),
        (("nowhere.jsonl",), "There is no file"),
        (("pyproject.toml",), "does not begin with the head of an export"),
        (("--checkpoints", "pyproject.toml"), "Give the record's public key"),
        (("--checkpoints", "nowhere", "--key", "AAAA"), "not an Ed25519 public key"),
        (("--checkpoints", "nowhere", "--key", "A" * 43 + "="), "nowhere cannot be read"),
        (("--database", "postgresql://127.0.0.1:9/none"), "The database cannot be read"),
    ],
)
def test_what_cannot_be_verified_is_said_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    done = verify(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
