"""The manifest in the repository is the one the code needs, no more and no less."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft7Validator
from ruamel.yaml import YAML
from typer.testing import CliRunner

from bot.cli import app
from bot.router import SLASHES, Router
from bot.slack import gateway
from bot.slack.manifest import manifest, manifest_text
from bot.slack.scopes import EVENT_SCOPES, METHOD_SCOPES, WITHOUT, missing
from tests.fakes.block_rules import SCHEMAS

ROOT = Path(__file__).parents[2]
SCHEMA = SCHEMAS / "manifest.schema.2.0.0.json"
SLACK_SOURCES = sorted((ROOT / "bot" / "slack").rglob("*.py"))


def loaded() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load((ROOT / "manifest.yml").read_text())
    return found


def test_the_file_is_what_the_code_generates() -> None:
    assert (ROOT / "manifest.yml").read_text() == manifest_text(Router()), "run `make manifest`"


@pytest.mark.skipif(not SCHEMA.exists(), reason="no ../shared/schemas: the manifest is not held to its schema")
@pytest.mark.parametrize("url", [None, "https://drbot.example.org/"])
def test_slack_s_schema_takes_it(url: str | None) -> None:
    errors = list(Draft7Validator(json.loads(SCHEMA.read_text())).iter_errors(manifest(Router(), url=url)))
    assert errors == []


def test_every_method_the_gateway_calls_has_its_scopes() -> None:
    source = Path(gateway.__file__).read_text()
    called = set(re.findall(r"self\._(?:client|patient|poster)\.([a-zA-Z_0-9]+)\(", source))
    called |= set(re.findall(r"self\._client\.(auth_test)", source))
    methods = {name.replace("_", ".", 1).replace(".users_", ".users.") for name in called}
    assert methods | {"apps.connections.open"} == set(METHOD_SCOPES)


def test_the_scopes_are_those_of_methods_and_events_alone() -> None:
    needed = {"commands"}.union(*METHOD_SCOPES.values(), *EVENT_SCOPES.values())
    assert set(loaded()["oauth_config"]["scopes"]["bot"]) == needed == set(WITHOUT)


def test_a_scope_that_is_not_granted_is_told_with_what_is_lost() -> None:
    granted = ",".join(scope for scope in WITHOUT if scope != "pins:write")

    assert missing({"X-OAuth-Scopes": granted}) == {"pins:write": "incident cards are not pinned"}
    assert missing({"Content-Type": "application/json"}) == {}  # Slack did not tell


def test_every_event_is_handled_and_every_handler_subscribed() -> None:
    handled = {name for path in SLACK_SOURCES for name in re.findall(r'@app\.event\("(\w+)"\)', path.read_text())}
    assert handled == set(loaded()["settings"]["event_subscriptions"]["bot_events"]) == set(EVENT_SCOPES)


def test_every_slash_command_is_known_to_the_router() -> None:
    commands = loaded()["features"]["slash_commands"]
    assert [command["command"] for command in commands] == [f"/{slash}" for slash in SLASHES]
    for command in commands:
        assert re.fullmatch(r"/[a-z0-9_-]{1,31}", command["command"])
        assert 0 < len(command["description"]) <= 100
        assert 0 < len(command["usage_hint"]) <= 200
        assert "url" not in command


def test_socket_mode_is_on_and_http_mode_has_its_addresses() -> None:
    assert loaded()["settings"]["socket_mode_enabled"] is True
    http = manifest(Router(), url="https://drbot.example.org")
    address = "https://drbot.example.org/slack/events"
    assert http["settings"]["socket_mode_enabled"] is False
    assert {command["url"] for command in http["features"]["slash_commands"]} == {address}
    assert http["settings"]["interactivity"]["request_url"] == address


def test_it_is_written_by_one_command(tmp_path: Path) -> None:
    for options, url in ([], None), (["--url", "https://drbot.example.org"], "https://drbot.example.org"):
        said = CliRunner().invoke(app, ["manifest", "--output", str(tmp_path / "manifest.yml"), *options])
        assert said.exit_code == 0
        assert (tmp_path / "manifest.yml").read_text() == manifest_text(Router(), url=url)
