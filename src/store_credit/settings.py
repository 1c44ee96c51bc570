"""Every setting of the service: environment variables with the prefix `STORE_CREDIT_`.

Nothing secret has a default. What is missing or wrong stops the start with one clear sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "STORE_CREDIT_"
WEBHOOK_SECRETS_MAX = 5
"""Digital River keeps at most five secrets of a webhook alive during a rotation."""

CALLOUT_PATH = "/checkouts/store-credits"
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class InvalidSettings(ValueError):
    """A setting is missing or wrong. The message is one sentence, and holds no secret."""


def duration(value: Any) -> Any:
    """`250ms`, `90s`, `15m`, `24h`, `30d` or a number of seconds as a timedelta."""
    found = re.fullmatch(r"(\d{1,9})(ms|[smhd]?)", value.strip()) if isinstance(value, str) else None
    if found is None:
        if isinstance(value, str):
            raise ValueError("must be a duration such as 90s, 15m, 24h or 30d")
        return value
    return timedelta(seconds=int(found[1]) * _UNITS[found[2] or "s"])


def _comma_separated(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Duration = Annotated[timedelta, BeforeValidator(duration)]
Listed = Annotated[list[str], NoDecode, BeforeValidator(_comma_separated)]
ListedSecrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_comma_separated)]


class Settings(BaseSettings):
    """The settings, typed. Lists are comma-separated; durations are written
    `250ms`, `90s`, `15m`, `24h`, `30d`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    database_url: str = "sqlite:///store-credit.db"
    """SQLite in the working directory by default; `postgresql://user:password@host/name` in production."""
    database_connections: int = Field(5, ge=3, le=100)
    """PostgreSQL connections of one process: one writes, one is for what needs locks, the others read."""

    callout_username: str | None = None
    callout_password: SecretStr | None = None
    """What Digital River authenticates with; more credentials can be kept in the database."""
    merchant_username: str | None = None
    merchant_password: SecretStr | None = None

    webhook_secrets: ListedSecrets = Field(default_factory=list)
    """Any of them may sign an event, so that a secret can be rotated."""
    webhook_tolerance: Duration = timedelta(seconds=300)
    """How far the time of a signature may be from ours."""
    unsigned_webhooks: Literal["refuse", "accept"] = "refuse"
    """`accept` takes events without a signature while no secret is configured: for local use only."""

    hold_ttl: Duration = timedelta(hours=24)
    """How long a promise to a checkout session lives; Digital River never says that one was abandoned."""
    partial_approval: bool = False
    """Approve what is available when more is asked; a credit line's own setting goes first."""
    return_grace: Duration = timedelta(days=30)
    """A return to an expired line makes it usable for at least this long; zero writes it off at once."""
    parked_retention: Duration = timedelta(days=35)
    """How long returns wait for a deduction: those of credit cards never see one."""
    event_retention: Duration | None = None
    """How long the bodies of finished events are kept, as they hold personal data; none: for ever."""
    live_mode: bool | None = None
    """True or false sets aside events of the other mode; none takes both."""
    dr_api_url: str = "https://api.digitalriver.com"
    dr_api_key: SecretStr | None = None
    """Digital River's API, for catching up after an outage."""
    callout_paths: Listed = Field(default_factory=list)
    """Further paths that serve the callout, beside `/checkouts/store-credits`."""

    deadline: Duration = timedelta(milliseconds=2_500)
    """The longest that a request waits for the ledger; a webhook must answer within 3 s."""
    client_timeout: Duration = timedelta(seconds=10)
    """The longest that a client takes to send the head of a request, and again its body."""
    connections: int = Field(800, ge=10, le=100_000)
    """Open connections of one process; those that wait longest for their clients make room for new ones."""
    sweep_interval: Duration = timedelta(seconds=5)
    """How often holds and lines past their time are looked for."""
    metrics_role: Literal["none", "reader"] = "none"
    """`reader` asks for credentials at `/metrics`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("*", mode="before")
    @classmethod
    def _utf_8(cls, value: object) -> object:
        # What is not comes from the environment as lone surrogates.
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("must be valid UTF-8")
        return value

    @field_validator("hold_ttl", "sweep_interval", "deadline", "client_timeout", "webhook_tolerance")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if not timedelta() < value <= timedelta(days=3_650):
            raise ValueError("must be more than zero and at most ten years")
        return value

    @field_validator("return_grace", "event_retention", "parked_retention")
    @classmethod
    def _not_endless(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value > timedelta(days=3_650):
            raise ValueError("must be at most ten years")
        return value

    @field_validator("live_mode", "event_retention", "dr_api_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("webhook_secrets")
    @classmethod
    def _few_secrets(cls, value: list[SecretStr]) -> list[SecretStr]:
        if len(value) > WEBHOOK_SECRETS_MAX:
            raise ValueError(f"holds more than {WEBHOOK_SECRETS_MAX} secrets")
        return value

    @field_validator("callout_paths")
    @classmethod
    def _plain_paths(cls, value: list[str]) -> list[str]:
        if bad := [path for path in value if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path)]:
            raise ValueError(f"holds {bad[0]!r}, which is no plain path such as /checkout/store-credit")
        return list(dict.fromkeys(path for path in value if path != CALLOUT_PATH))

    @model_validator(mode="after")
    def _whole_pairs(self) -> Self:
        for role in ("callout", "merchant"):
            username, password = getattr(self, f"{role}_username"), getattr(self, f"{role}_password")
            name = f"{PREFIX}{role.upper()}"
            if (username is None) != (password is None):
                raise ValueError(f"{name}_USERNAME and {name}_PASSWORD must be set together")
            if username is not None and (not username or ":" in username):
                raise ValueError(f"{name}_USERNAME must not be empty nor hold a colon")
            if password is not None and not password.get_secret_value():
                raise ValueError(f"{name}_PASSWORD must not be empty")
        return self


def unknown(environment: Iterable[str]) -> list[str]:
    """The names of variables that look like settings of ours and are none."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(
        name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def load(**given: Any) -> Settings:
    """The settings from the environment, with those given by name. Raises InvalidSettings."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise InvalidSettings(f"{message}.") from None
        name = f"{PREFIX}{str(first['loc'][0]).upper()}"
        raise InvalidSettings(f"{name}: {message[:1].lower()}{message[1:]}.") from None
