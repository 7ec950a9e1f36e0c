"""Every setting of the coordinator, in one typed place. Each is read from the environment as DARKBLOOM_<NAME>."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ADMIN_KEY_CHARACTERS_MIN = 16

TrustLevel = Literal["none", "self_signed", "hardware"]


class Settings(BaseSettings):
    """The defaults are those of ``darkbloomd up`` on a developer's machine."""

    model_config = SettingsConfigDict(env_prefix="DARKBLOOM_", extra="ignore", populate_by_name=True)

    environment: Literal["development", "production"] = "development"
    """Development mode lowers the trust floor and waives the manifest, SIP and posture gates; it says so everywhere."""

    data_dir: Path = Path("~/.darkbloom/coordinator")
    """Where the embedded PostgreSQL keeps its data. Unused with a database URL."""

    database_url: str = ""
    """A PostgreSQL server, version 15 or newer. Empty: the embedded one."""

    broker_url: str = ""
    """``amqp://…`` for RabbitMQ. Empty: the embedded broker, for a single process."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)

    internal_url: str = ""
    """Where schedulers and other gateways reach this gateway. Empty: its own host and port over plain HTTP."""

    internal_secret: str = ""
    """Shared by gateways and schedulers to recognise each other. Needed when they are apart, and with it gateways relay
    for each other."""

    sealing_key_file: Path | None = None
    """The 32 raw bytes of the key that consumers seal requests to, shared by all gateways. Unset: the mnemonic's key,
    or ``sealing.key`` in the data directory of an embedded database."""

    mnemonic: str = Field("", repr=False)
    """12 or 24 words that the sealing key is derived from."""

    previous_mnemonic: str = Field("", repr=False)
    """The words before; their key stays valid for 24 hours after the start."""

    minimum_trust: TrustLevel | None = None
    """The trust floor of routing. Unset: ``none`` in development, ``hardware`` in production."""

    cors_origins: tuple[str, ...] = ("https://console.darkbloom.dev",)
    """Web origins that browsers may call from."""

    platform_fee_percent: int = Field(0, ge=0, le=100)
    minimum_charge_micro_usd: int = Field(100, ge=0)

    inference_body_bytes_max: int = 16 * 1024 * 1024
    rate_limit_rps: float | None = Field(None, ge=0)
    """Requests a second of one account; 0 lifts the limit. Unset: 1 in production, no limit in development."""

    rate_limit_burst: int = Field(10, ge=1)
    rate_limit_tokens_per_minute: int = Field(0, ge=0)
    """Prompt and completion tokens of one account; 0 means no limit."""

    financial_rate_limit_rps: float | None = Field(None, ge=0)
    """The same for managing keys and money. Unset: 0.2 in production, no limit in development."""

    financial_rate_limit_burst: int = Field(3, ge=1)
    wrong_credentials_per_minute: int | None = Field(None, ge=0)
    """Wrong credentials from one address; 0 lifts the limit. Unset: 20 in production, no limit in development."""

    reply_seconds: float = Field(600.0, ge=0)
    """How long the reply to a request with an idempotency key is kept."""

    queue_depth_max: int = 10
    """Requests that may wait for one model. One more is refused, or the last one of an account that has more."""

    queue_wait_seconds: float = 120.0
    no_provider_wait_seconds: float = 15.0
    """How long a request waits for a model that no connected machine serves."""

    first_signal_seconds: float = 10.0
    first_content_seconds: float = 600.0
    hedge_quantile: float = Field(0.95, gt=0, le=1)
    """A first content is late when it takes longer than this share of the model's latest ones took."""

    hedge_percent_max: int = Field(5, ge=0, le=100)
    """Requests of a gateway, in percent, that may go to a second machine because their first content is late; 0 turns
    this off."""

    chunk_gap_seconds: float = 600.0
    request_seconds_max: float = 3_600.0
    hold_seconds: float = 3_690.0
    settle_wait_seconds: float = 10.0
    cancel_grace_seconds: float = 30.0
    drain_seconds: float = 15.0

    lease_seconds: float = 30.0
    lease_renew_seconds: float = 10.0
    lease_grace_seconds: float = 30.0
    """A lapsed lease is acted on only after this long."""

    sweep_seconds: float = 5.0

    challenge_interval_seconds: float = 300.0
    challenge_answer_seconds: float = 30.0
    heartbeat_age_seconds_max: float = 90.0

    checkpoint_key_file: Path | None = None
    """The private keys of the log's checkpoints. Unset: ``checkpoint.key`` in the data directory of an embedded
    database; with a database server, this process signs nothing."""

    checkpoint_seconds: float = Field(60.0, gt=0)
    """How often a log that grew is signed."""

    log_origin: str = Field("", pattern=r"^[^\s+]*$")
    """The name of the log in a key file that is made anew. Empty: a random one."""

    session_key_file: Path | None = None
    """The private key under which sessions are issued. Unset: ``session.key`` in the data directory of an embedded
    database; with a database server, nobody can sign in here and no machine can be linked."""

    session_token_seconds: int = Field(3_600, ge=60, le=86_400)
    """How long a session's token holds before it has to be refreshed."""

    session_issuer: str = ""
    session_audience: str = ""
    session_verification_key: str = ""
    session_verification_key_file: Path | None = None
    """Another issuer whose ES256 tokens are sessions, with its P-256 public key in PEM or its JWK set."""

    privy_app_id: str = Field("", validation_alias="EIGENINFERENCE_PRIVY_APP_ID")
    privy_app_secret: str = Field("", validation_alias="EIGENINFERENCE_PRIVY_APP_SECRET")
    privy_verification_key: str = Field("", validation_alias="EIGENINFERENCE_PRIVY_VERIFICATION_KEY")
    privy_verification_key_file: Path | None = Field(
        None, validation_alias="EIGENINFERENCE_PRIVY_VERIFICATION_KEY_FILE"
    )
    privy_api_url: str = "https://auth.privy.io"

    admin_key: str = Field("", validation_alias="EIGENINFERENCE_ADMIN_KEY")
    """A key that acts as the account ``admin``, on the admin's routes too. Empty: there is none."""

    admin_emails: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="EIGENINFERENCE_ADMIN_EMAILS")
    """Addresses, separated by commas, whose owners are administrators once they signed in."""

    smtp_url: str = ""
    """The server that sends mail: ``smtp://user:password@host:587`` or ``smtps://…``. Empty: development mode writes
    mail to the log, and in production nobody can sign in by e-mail."""

    mail_from: str = "darkbloom@localhost"
    console_url: str = Field("", validation_alias="EIGENINFERENCE_CONSOLE_URL")
    """Where people link their machines, without the ``/link``. Empty: this gateway's own page."""

    sign_ins_per_hour: int | None = Field(None, ge=0)
    """Sign-in codes that one network address may ask for; 0 lifts the limit. Unset: 20 in production, no limit in
    development."""

    device_requests_per_minute: int | None = Field(None, ge=0)
    """The same for requests of machines that are being linked. Unset: 30 in production, no limit in development."""

    scheduler_threads: int = Field(4, ge=1, le=64)
    ledger_queue_max: int = 10_000
    ledger_batch_max: int = 500
    spot_check_seconds: float = Field(60.0, ge=1.0)
    """How often a few wallets are compared with their events and the journal."""

    @property
    def development(self) -> bool:
        return self.environment == "development"

    @property
    def relays(self) -> bool:
        """Whether the machines of all gateways serve the consumers of each."""
        return bool(self.internal_secret)

    @property
    def requests_per_second(self) -> float:
        return (0.0 if self.development else 1.0) if self.rate_limit_rps is None else self.rate_limit_rps

    @property
    def financial_requests_per_second(self) -> float:
        default = 0.0 if self.development else 0.2
        return default if self.financial_rate_limit_rps is None else self.financial_rate_limit_rps

    @property
    def wrong_credentials_max(self) -> int:
        default = 0 if self.development else 20
        return default if self.wrong_credentials_per_minute is None else self.wrong_credentials_per_minute

    @property
    def sign_ins_max(self) -> int:
        default = 0 if self.development else 20
        return default if self.sign_ins_per_hour is None else self.sign_ins_per_hour

    @property
    def device_requests_max(self) -> int:
        default = 0 if self.development else 30
        return default if self.device_requests_per_minute is None else self.device_requests_per_minute

    @property
    def trust_floor(self) -> TrustLevel:
        return self.minimum_trust or ("none" if self.development else "hardware")

    @field_validator("admin_emails", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        addresses = value.split(",") if isinstance(value, str) else value
        return tuple(address.strip().lower() for address in addresses if address.strip())

    @field_validator("console_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator("admin_key")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and len(value) < ADMIN_KEY_CHARACTERS_MIN:
            raise ValueError(f"an admin key has at least {ADMIN_KEY_CHARACTERS_MIN} characters")
        return value

    @model_validator(mode="after")
    def _no_lowered_floor_in_production(self) -> Settings:
        if not self.development and self.trust_floor == "none":
            raise ValueError("DARKBLOOM_MINIMUM_TRUST=none is for development only")
        return self
