"""Settings of a process, from the environment. Only `bot.bootstrap` and `bot.cli` read them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bot.redaction import Mask

SLACK_API = "https://slack.com/api/"


class SlackMode(StrEnum):
    SOCKET = "socket"
    HTTP = "http"
    OFF = "off"


class ExecutorKind(StrEnum):
    """Where heavy steps run."""

    SUBPROCESS = "subprocess"
    KUBERNETES = "kubernetes"


class Settings(BaseSettings):
    """What differs between two installations. What the plan says is in the plan file."""

    model_config = SettingsConfigDict(env_prefix="DRBOT_", extra="ignore", populate_by_name=True)

    plan_file: Path = Path("dr-plan.yml")
    data_directory: Path = Path("var")
    """The embedded database, local copies of dumps, spool and job folders."""
    executor: ExecutorKind = ExecutorKind.SUBPROCESS
    """Processes beside the worker, or Jobs as `jobs` of the plan file says."""
    job_memory_mib: int = Field(default=4096, ge=256)
    """Writable memory of each process of a job beside the worker."""
    wal_open_every_s: float = Field(default=2, ge=0.2, le=600)
    """`drbot wal` sends what is new of the open segment this often: about what is lost with server and archiver."""
    plan_digest: str = ""
    """For jobs: the digest of the plan the worker goes by. Another plan is refused."""
    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    """The bot's own PostgreSQL, as the owner of its tables; empty: the bundled one is started in `data_directory`."""
    slack_database_url: SecretStr | None = None
    worker_database_url: SecretStr | None = None
    clock_database_url: SecretStr | None = None
    cli_database_url: SecretStr | None = None
    prover_database_url: SecretStr | None = None
    """A login that is a member of `drbot_slack`, `drbot_worker`, ... alone. A process that has one needs no
    DATABASE_URL; one that has none uses DATABASE_URL and gives the owner's rights up at each connection."""
    slack_mode: SlackMode = SlackMode.SOCKET
    slack_bot_token: SecretStr | None = Field(default=None, validation_alias="SLACK_BOT_TOKEN")
    slack_app_token: SecretStr | None = Field(default=None, validation_alias="SLACK_APP_TOKEN")
    slack_signing_secret: SecretStr | None = Field(default=None, validation_alias="SLACK_SIGNING_SECRET")
    slack_api_url: str = Field(default=SLACK_API, validation_alias="SLACK_API_URL")
    demo: bool = False
    """Only in a demo may the Slack address be another one, since it receives the tokens."""
    http_host: str = "127.0.0.1"
    http_port: int = 3000
    person: str = ""
    """Who uses the command line: the short name of the roster."""
    key: Path = Path("~/.ssh/id_ed25519")
    """What that person signs with."""
    lease_s: float = Field(default=30, ge=2)
    log_format: str = "json"

    _mask: Mask = PrivateAttr(default_factory=Mask)

    @property
    def mask(self) -> Mask:
        """What hides the secrets of this process. Whoever builds adapters hands it on."""
        return self._mask

    def hide_with(self, mask: Mask) -> None:
        """Use this mask from now on; it learns every secret setting."""
        self._mask = mask
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                mask.learn(value.get_secret_value())

    @model_validator(mode="after")
    def only_a_demo_moves_slack(self) -> Self:
        if self.slack_api_url != SLACK_API and not self.demo:
            raise ValueError("SLACK_API_URL may only be changed together with DRBOT_DEMO=true: it receives the tokens")
        return self
