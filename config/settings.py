"""Every setting of Prompt Stack, read from the environment, `.env` and files with secrets.

They stand in one long list, so that a person who looks for a setting has one page to search.
"""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from promptstack.config.errors import ConfigurationError
from promptstack.config.names import VectorType
from promptstack.config.postgres_url import with_password
from promptstack.config.redis_url import RedisUrl
from promptstack.config.secret_files import SECRETS_DIR, SecretFiles
from promptstack.config.setting_types import (
    HOST,
    REDIS_BROKERS,
    WIDE_HOST,
    AnyRedisUrl,
    ApiKey,
    BrokerUrl,
    CertificateFile,
    JsonText,
    MailFrom,
    PositiveSeconds,
    PostgresUrl,
    Seconds,
    Secret,
    ServerAddress,
    SmtpAddress,
    TierWeights,
)

DEFAULT_SECRET_KEY = "change-me"  # noqa: S105 - refused in production
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 16, 8_000
"""Bounds of a chunk. One character can be four tokens, and the chunk must also hold its overlap."""


YOUNGEST_AUDIT_SECONDS = 86_400.0
"""The ledger itself keeps each entry of the audit log for a day."""


class Settings(BaseSettings):
    """The settings; each says what it is for. Names in the environment are the upper-case ones."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", env_ignore_empty=True
    )

    # The application
    app_name: str = Field("Prompt Stack", description="Name shown in the API's docs.")
    version: str = Field("0.1.0", description="Shown in /healthz and the API's docs.")
    environment: Literal["development", "test", "production"] = Field(
        "development", description="production refuses unsafe defaults."
    )
    debug: bool = Field(False, description="Log at DEBUG level.")
    log_level: Literal["INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="Lowest level that is logged. INFO logs one line for each provider call.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How a log record is written, one line each."
    )
    state_dir: Path = Field(
        Path(".promptstack"),
        validation_alias="PROMPTSTACK_STATE_DIR",
        description="Where the embedded servers keep their data.",
    )
    secrets_dir: Path = Field(
        SECRETS_DIR,
        description="Folder with a file for each secret, named as its setting in lower case, such "
        "as openai_api_key. The environment and .env come before it.",
    )

    # The servers
    database_url: PostgresUrl | None = Field(
        None, description="PostgreSQL with pgvector, the ledger. Unset: an embedded server."
    )
    database_password: Secret | None = Field(
        None,
        description="Password for DATABASE_URL, if the URL holds none. It may hold any character.",
    )
    database_pool_size: int = Field(
        10, ge=1, description="Connections a process keeps open to PostgreSQL."
    )
    database_max_overflow: int = Field(
        20, ge=0, description="Connections a process may open beyond the pool at a peak."
    )
    redis_url: AnyRedisUrl | None = Field(
        None,
        description="Redis or Valkey: progress, results, broker. Unset: an embedded server.",
    )
    redis_password: Secret | None = Field(
        None,
        description="Password for REDIS_URL, if the URL holds none. It may hold any character.",
    )
    celery_broker_url: BrokerUrl | None = Field(
        None,
        description="A broker other than REDIS_URL, for example amqp://... (RabbitMQ).",
    )
    celery_user: str | None = Field(
        None,
        description="E-mail of the user to whom jobs belong that another service's Celery sends "
        "with the request in the message (docs/celery.md). Unset: to nobody, as those of Python.",
    )
    celery_default_queue: str = Field(
        "celery",
        min_length=1,
        description="Queue of another service's tasks that follow such jobs, in a chain, a chord "
        "or as callbacks, where they name none: the task_default_queue of that service.",
    )
    tls_ca_file: CertificateFile | None = Field(
        None,
        description="File with the certificate authorities of rediss:// and amqps:// servers. "
        "Unset: those that this machine trusts. Certificate and host name are always checked.",
    )

    # The HTTP door
    api_v1_prefix: str = Field(
        "/api/v1", pattern=r"^/[\w/-]*\w$", description="Path below which the HTTP API lives."
    )
    api_host: str = Field("127.0.0.1", description="Address on which the HTTP API listens.")
    api_port: int = Field(8000, ge=0, le=65535, description="Its port; 0 takes a free one.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        ["*"],
        description="Host headers that are answered, separated by commas. *.example.org means all "
        "hosts below example.org.",
    )
    max_body_bytes: int = Field(
        12_000_000, ge=1_000, description="Largest HTTP body that is read, in bytes."
    )
    max_body_values: int = Field(
        1_000_000,
        ge=1_000,
        description="Most values (objects, lists, texts, numbers) in a JSON body. Each takes time "
        "and memory, however short it is.",
    )
    request_read_seconds: PositiveSeconds = Field(
        60.0,
        description="Time in which an HTTP request must arrive whole, and in which its sender must "
        "read some of the answer. Then the connection is closed.",
    )
    max_connections: int = Field(
        800,
        ge=1,
        description="Most connections that the HTTP API holds open at once. Keep it below the "
        "system's limit of open files (ulimit -n).",
    )
    max_upload_bytes: int = Field(
        1_000_000_000,
        ge=1_000,
        description="Largest file that is uploaded, as it comes, in bytes. "
        "It is kept in the folder for temporary files (TMPDIR) while it is read.",
    )
    files_of_one_user: int = Field(
        10_000, ge=1, description="Most files that a user keeps by `/openai/v1/files`."
    )
    file_bytes_of_one_user: int = Field(
        20_000_000_000,
        ge=1_000,
        description="Most bytes that these files have together. They are kept in PostgreSQL; "
        "outputs of batches don't count.",
    )
    batch_file_seconds: Seconds = Field(
        2_592_000.0,
        description="How long files for batches are kept whose sender doesn't say how long (30 "
        "days); 0 keeps them until they are deleted.",
    )
    max_unpacked_bytes: int = Field(
        4_000_000_000,
        ge=1_000,
        description="Most bytes that the source of a run unpacks to, where it is uploaded or in "
        "object storage; a few kilobytes can be packed gigabytes.",
    )
    max_run_items: int = Field(
        5_000_000,
        ge=1,
        description="Most inputs of a run whose source is uploaded or in object storage, and most "
        "blank lines besides.",
    )
    max_batch_lines: int = Field(
        50_000, ge=1, description="Most requests of a batch (POST /openai/v1/batches)."
    )
    max_batch_bytes: int = Field(
        200_000_000, ge=1_000, description="Largest input file of a batch, also unpacked, in bytes."
    )
    batch_repeat_seconds: Seconds = Field(
        60.0,
        description="A batch that is asked for again within this time, by the same key and with "
        "the same file, endpoint, window and metadata, is the one before: clients send requests "
        "again whose answer they missed. 0: never. An Idempotency-Key says it itself.",
    )
    object_storage_places: Annotated[list[str], NoDecode] = Field(
        [],
        description="Where runs may read sources and write outputs in object storage: URLs such as "
        "s3://bucket/folder, separated by commas; {user_id} stands for the caller's id. Unset: "
        "nowhere. Needs the extra s3.",
    )
    object_storage_endpoint: ServerAddress | None = Field(
        None, description="Address of a server that speaks S3's protocol. Unset: AWS."
    )
    object_storage_region: str | None = Field(None, description="Its region, where it has one.")
    object_storage_access_key: Secret | None = Field(
        None,
        description="Access key for object storage. Unset: as this machine is known to AWS.",
    )
    object_storage_secret_key: Secret | None = Field(
        None, description="The secret that belongs to OBJECT_STORAGE_ACCESS_KEY."
    )
    upload_seconds: PositiveSeconds = Field(
        1_800.0,
        description="Time in which an upload must arrive whole, and time in which it is read then. "
        "If nothing of it comes for REQUEST_READ_SECONDS, the connection is closed before.",
    )
    max_uploads: int = Field(
        4, ge=1, description="Sources of runs that the HTTP API receives and reads at once."
    )
    max_uploads_of_one_user: int = Field(2, ge=1, description="Of these, the most for one user.")
    max_downloads: int = Field(
        16,
        ge=1,
        description="Results and failures of runs that the HTTP API sends as files at once. Each "
        "takes some megabytes of memory.",
    )
    max_downloads_of_one_user: int = Field(4, ge=1, description="Of these, the most for one user.")
    max_watchers: int = Field(
        600,
        ge=0,
        description="Most requests that watch jobs and runs or wait for them at once in an API "
        "process: streams of events, and requests with `wait`. Keep it below MAX_CONNECTIONS.",
    )
    max_watchers_of_user: int = Field(
        200, ge=0, description="Most of MAX_WATCHERS that are one user's."
    )
    vectors_gather_seconds: float = Field(
        0.005,
        ge=0,
        le=1,
        description="While calls of /openai/v1/embeddings are under way, how long small ones are "
        "gathered into one job. 0: each has its own.",
    )
    events_heartbeat_seconds: PositiveSeconds = Field(
        15.0,
        description="A stream of events says that it is there after so long without an event. "
        "Keep it below the time-out of proxies before the API.",
    )
    secret_key: Secret = Field(
        SecretStr(DEFAULT_SECRET_KEY),
        description="Signs the tokens of who has signed in, and encrypts the secrets of webhooks. "
        "Long and random in production; the same in all processes.",
    )
    previous_secret_key: Secret | None = Field(
        None,
        description="SECRET_KEY before it was replaced. What it has signed is taken as well, so "
        "that nobody is signed out, and webhooks keep their secrets; remove it after "
        "REFRESH_TOKEN_EXPIRE_DAYS.",
    )
    access_token_expire_minutes: int = Field(
        30, ge=1, le=1_440, description="How long an access token signs requests."
    )
    refresh_token_expire_days: int = Field(
        7,
        ge=1,
        le=366,
        description="How long a refresh token gets the next access token, and how long a browser "
        "stays signed in.",
    )
    first_admin_email: str | None = Field(
        None,
        description="Who becomes super_admin at the API's start, while nobody is one. Takes "
        "FIRST_ADMIN_PASSWORD_FILE too.",
    )
    first_admin_password_file: Path | None = Field(
        None, description="A file with that person's password; read only if they are added."
    )
    trusted_proxies: Annotated[list[IPv4Network | IPv6Network], NoDecode] = Field(
        [],
        description="Addresses of reverse proxies, such as 10.0.0.0/8, separated by commas. Only "
        "theirs is the word of who sends a request: TRUSTED_IDENTITY_HEADER and X-Forwarded-For.",
    )
    trusted_identity_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$",
        description="Header in which a trusted proxy says who has signed in there, by e-mail. The "
        "proxy must remove it from what it gets. Unset: no header does.",
    )
    trusted_identity_creates_users: bool = Field(
        False, description="Whether somebody whom the proxy names becomes a user if they are none."
    )

    # Flower
    flower_host: str = Field("127.0.0.1", description="Address on which Flower listens.")
    flower_port: int = Field(5555, ge=0, le=65535, description="Flower's port.")
    flower_basic_auth: Secret | None = Field(
        None, description="user:password that Flower asks for; required beyond loopback."
    )

    # Providers
    default_llm_provider: str = Field(
        "demo", description="Provider of a generation that names none."
    )
    default_embedding_provider: str = Field(
        "local", description="Provider of an embedding that names none."
    )
    openai_api_key: ApiKey | None = Field(None, description="Key of the openai provider.")
    openai_base_url: ServerAddress | None = Field(
        None, description="An OpenAI-compatible server instead of OpenAI's own."
    )
    anthropic_api_key: ApiKey | None = Field(None, description="Key of the anthropic provider.")
    anthropic_base_url: ServerAddress | None = Field(
        None, description="A server that speaks Anthropic's API instead of its own."
    )
    gemini_api_key: ApiKey | None = Field(None, description="Key of the gemini provider.")
    gemini_base_url: ServerAddress | None = Field(
        None, description="A server that speaks Gemini's API instead of Google's own."
    )
    provider_timeout_seconds: PositiveSeconds = Field(
        120.0,
        description="Longest wait for one provider call; of a stream, for each piece of its text.",
    )

    models_file: Path | None = Field(
        None,
        description="A TOML file with servers as providers, and limits and prices of models.",
    )
    limiter_patience_seconds: Seconds = Field(
        3.0,
        description="Longest wait for a rate limit in a worker; a longer one is in the queue.",
    )
    tier_weights: TierWeights = Field(
        TierWeights(),
        description="How large a user's share is by tier, where users wait for each other, as "
        'JSON: {"free": 1, "pro": 2, "enterprise": 4}.',
    )

    # Jobs
    max_text_bytes: int = Field(
        10_000_000, ge=1, description="Largest prompt or document that is accepted, in UTF-8 bytes."
    )
    query_vector_seconds: float = Field(
        7 * 86_400,
        gt=0,
        description="For how long the same query of a search, and the same input of a job for "
        "vectors, is not paid for again.",
    )
    max_metadata_bytes: int = Field(
        16_384, ge=2, description="Most metadata of a document, in bytes of JSON."
    )
    max_json_values: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Most values in a request's options, tools and calls of tools together.",
    )
    max_json_depth: int = Field(
        50, ge=1, le=50, description="Deepest nesting of a request's options and tools."
    )
    max_option_bytes: int = Field(
        1_000_000, ge=2, description="Longest options of a request, in UTF-8 bytes of JSON."
    )
    max_template_bytes: int = Field(
        1_000_000, ge=1, description="Longest template of a run, in UTF-8 bytes."
    )
    max_template_places: int = Field(
        1_000, ge=1, description="Most places in a template where a field is filled in."
    )
    max_rendered_bytes: int = Field(
        200_000_000,
        ge=1,
        description="Most bytes of a run's inputs sent by HTTP, all together, with the template "
        "filled in.",
    )
    max_record_values: int = Field(
        1_000_000,
        ge=100,
        description="Most values in one record of a source, and columns of a table.",
    )
    max_source_part_bytes: int = Field(
        67_108_864,
        ge=1_048_576,
        description="Most memory for a part of a Parquet file that can only be read whole: the "
        "file's description, or packed bytes that expand to many.",
    )
    max_schema_nodes: int = Field(
        10_000,
        ge=1,
        description="Most values of any kind in a JSON schema that a caller sends, or in all "
        "schemas of one request's tools.",
    )
    max_schema_characters: int = Field(
        200_000, ge=1, description="Most characters in all names and texts of such a schema."
    )
    max_schema_depth: int = Field(
        50,
        ge=1,
        le=100,
        description="Deepest nesting of such a schema, references followed.",
    )
    max_schema_properties: int = Field(1_000, ge=1, description="Most properties in such a schema.")
    max_schema_enum_members: int = Field(
        1_000, ge=1, description="Most members of all enums in such a schema."
    )
    max_schema_patterns: int = Field(100, ge=0, description="Most patterns in such a schema.")
    max_schema_pattern_characters: int = Field(
        1_000, ge=1, description="Longest pattern in such a schema; each must be compiled."
    )
    max_schema_patterns_characters: int = Field(
        10_000, ge=1, description="Most characters of all patterns in such a schema."
    )
    max_schema_expanded: int = Field(
        100_000,
        ge=1,
        description="Most keywords in the schema of a run's answers. A part counts again for each "
        "reference to it.",
    )
    max_judging_steps: int = Field(
        200_000,
        ge=1,
        description="Most steps to check an answer by its schema; 1 to 3 microseconds each.",
    )
    max_judging_seconds: PositiveSeconds = Field(
        2.0, description="Most processor time to check an answer by its schema."
    )
    chunk_tokens: int = Field(
        512,
        ge=MIN_CHUNK_TOKENS,
        le=MAX_CHUNK_TOKENS,
        description="Longest chunk of a document, in tokens of cl100k_base.",
    )
    chunk_overlap_tokens: int | None = Field(
        None,
        ge=0,
        description="Most tokens that a chunk repeats from the one before it. Unset: an eighth of "
        "CHUNK_TOKENS.",
    )
    share_vectors: bool = Field(
        False,
        description="Whether a document may use vectors that other users paid for. By time and sum "
        "of usage, a user may then learn that somebody has embedded the same text. Runs never "
        "share.",
    )
    job_max_retries: int = Field(
        3, ge=0, le=100, description="Retries of a job that names no number of its own."
    )
    job_expires_seconds: PositiveSeconds = Field(
        86_400.0, description="Time from enqueue after which an unfinished job ends as expired."
    )
    job_retention_seconds: Seconds = Field(
        7_776_000.0,
        description="How long a job, its answer and its idempotency key are kept after its end "
        "(90 days); 0 keeps them for ever.",
    )
    attempt_retention_seconds: Seconds = Field(
        34_560_000.0,
        description="How long the record of a provider call and its cost is kept (400 days), also "
        "after its job was deleted; 0 keeps it for ever.",
    )
    audit_retention_seconds: Seconds = Field(
        63_072_000.0,
        description="How long entries of the audit log are kept (2 years); 0 keeps them for ever, "
        "and less than a day is not possible.",
    )
    idempotency_key_seconds: Seconds = Field(
        86_400.0,
        description="How long the idempotency key of a request that makes something other than a "
        "job is known; 0 keeps it for ever.",
    )
    retry_backoff_seconds: PositiveSeconds = Field(
        1.0, description="Upper bound of the first wait before a retry; doubles each time."
    )
    retry_backoff_max_seconds: PositiveSeconds = Field(
        300.0, description="Upper bound of any wait before a retry."
    )
    retry_after_max_seconds: PositiveSeconds = Field(
        600.0,
        description="Longest wait that a provider's Retry-After can cause. A Retry-After of more "
        "than a day is ignored.",
    )
    progress_ttl_seconds: int = Field(
        86_400, ge=60, description="How long Redis keeps progress; the ledger has it for ever."
    )

    # Texts as they are produced
    stream_max_bytes: int = Field(
        1_000_000,
        ge=10_000,
        description="Most bytes of a job's text that Redis holds while it is produced. Of a longer "
        "one, a reader that is behind gets all of it at the end, from the ledger.",
    )
    stream_max_pieces: int = Field(
        10_000, ge=100, description="Most pieces of a job's text in Redis, each of 20 ms or more."
    )
    stream_ttl_seconds: int = Field(
        300,
        ge=10,
        description="How long Redis holds a job's text after its last piece; the ledger has it.",
    )

    # The cache
    usage_cache_seconds: float = Field(
        5.0,
        ge=0,
        le=3_600,
        description="How old the sums of GET /usage may be; their header Age says it. 0 sums the "
        "calls at each request.",
    )
    cache_value_bytes: int = Field(
        1_000_000,
        ge=1_000,
        le=100_000_000,
        description="Largest answer that is cached in Redis, in bytes; a larger one is computed "
        "each time.",
    )

    # Features
    feature_flags: JsonText = Field(
        "{}",
        description="For whom features are on, as JSON: true, false, or rules, by name. What is "
        "set by `promptstack flags` goes before it. docs/flags.md has the rules.",
    )

    chat_wait_seconds: float = Field(
        30.0,
        ge=0,
        le=300,
        description="Longest wait of POST /chat for an answer; then it answers 202, and the job "
        "goes on. Keep it below the time-out of proxies before the API.",
    )

    # Direct calls
    direct_wait_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Longest wait of a direct call below /openai/v1 and /anthropic/v1 for its "
        "answer. Then it is answered with 504, or with 429 where a rate limit had no room, and its "
        "job is cancelled unless the caller keeps it. Keep it below the time-out of proxies before "
        "the API.",
    )

    # Mail
    smtp_url: SmtpAddress | None = Field(
        None,
        description="The mail server: smtp://user:password@host:587 (STARTTLS), or smtps:// for "
        "TLS from the first byte. Unset: no mail is sent.",
    )
    mail_from: MailFrom | None = Field(
        None, description="Sender of mails, such as `Prompt Stack <stack@example.org>`."
    )
    mail_timeout_seconds: PositiveSeconds = Field(
        30.0, description="Longest wait for each answer of the mail server."
    )
    mail_retry_seconds: Seconds = Field(
        60.0,
        description="Least wait before a mail is sent again that the mail server did not take for "
        "now, or that it did not reply to. Servers that greylist want minutes.",
    )
    mail_expires_seconds: PositiveSeconds = Field(
        259_200.0,
        description="Time for which a mail is tried that the mail server does not take (3 days).",
    )

    # Webhooks
    webhook_allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [],
        description="Hosts that events may be sent to though they are private or without TLS, by "
        "name or address, separated by commas. All others must be public.",
    )
    webhook_allow_http: bool = Field(
        False, description="Whether events may be sent to http:// addresses, without TLS."
    )
    webhook_retry_seconds: Annotated[list[Seconds], NoDecode] = Field(
        [0, 5, 300, 1_800, 7_200, 28_800, 86_400],
        description="Waits before each attempt to deliver an event, separated by commas: the first "
        "after its job ended, each other one after the attempt before it failed.",
    )
    webhook_timeout_seconds: PositiveSeconds = Field(
        10.0, description="Time in which a receiver must have answered an event."
    )
    webhook_disable_failures: int = Field(
        10,
        ge=1,
        description="Attempts that fail in a row, after which an endpoint is disabled and its user "
        "told by mail.",
    )
    webhook_endpoints: int = Field(20, ge=1, description="Most endpoints of one user.")
    webhook_retention_seconds: PositiveSeconds = Field(
        604_800.0,
        description="How long the log of a delivery is kept, and an event for an endpoint that is "
        "disabled (7 days).",
    )

    # Runs
    run_in_flight: int = Field(
        32, ge=1, le=1_000, description="Calls of a run under way at once in each worker."
    )
    run_block_bytes: int = Field(
        16_777_216,
        ge=1_000,
        description="Size of a block of a run's inputs, which is stored at once, in bytes. Reading "
        "a source holds two blocks in memory.",
    )
    shard_bytes: int = Field(
        33_554_432,
        ge=1_000,
        description="Most bytes of inputs in one shard, which a worker holds in memory. A longer "
        "input is a shard by itself.",
    )
    csv_guard_formulas: bool = Field(
        True,
        description="In CSV outputs, put an apostrophe before a text that a spreadsheet would run "
        "as a formula. Control characters are always written as \\x1b and such.",
    )
    run_expires_seconds: PositiveSeconds = Field(
        604_800.0, description="Time after which an unfinished run ends as expired (7 days)."
    )
    batch_refuses_late: bool = Field(
        False,
        description="Refuse a batch of `/openai/v1/batches` that the known limits can't finish in "
        "its window, with the hour at which it could be done. Else it is done as far as it goes.",
    )
    vector_type: VectorType = Field(
        VectorType.VECTOR,
        description="How vectors of a new model are stored: vector (4 bytes a number) or halfvec "
        "(2 bytes; search loses next to nothing).",
    )

    # Workers
    worker_concurrency: int = Field(
        8, ge=1, le=500, description="Jobs that one worker process runs at once."
    )
    worker_shards: int = Field(
        4,
        ge=1,
        le=100,
        description="How many of these may be shards of runs, which take long. A worker with more "
        "than one slot keeps one free of shards.",
    )
    worker_bytes_in_flight: int = Field(
        67_108_864,
        ge=1,
        description="Most bytes that a worker's calls for vectors take together, from when they "
        "leave until their vectors are stored. Calls beyond wait for others to be stored. 64 MiB "
        "are some 5,000 vectors of 1,536 numbers under way at once; more only helps a provider "
        "that answers slowly and takes very many tokens a minute.",
    )
    heartbeat_seconds: PositiveSeconds = Field(
        1.0, description="Time between a worker's heartbeats and checks for cancelled jobs."
    )
    worker_lost_seconds: PositiveSeconds = Field(
        12.0, description="Time without a heartbeat after which a worker counts as dead."
    )
    reconcile_seconds: PositiveSeconds = Field(
        1.0, description="Time between two looks for jobs that are due, lost or expired."
    )
    shutdown_grace_seconds: Seconds = Field(
        10.0,
        description="Time that running calls get at shutdown before their jobs go back to the "
        "queue. A second SIGTERM ends it.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say where settings come from; the first that has one wins."""
        return init_settings, env_settings, dotenv_settings, SecretFiles(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in (
            "allowed_hosts",
            "trusted_proxies",
            "webhook_allowed_hosts",
            "object_storage_places",
            "webhook_retry_seconds",
        ):
            if isinstance(said := values.get(name), str):
                values[name] = [one.strip() for one in said.split(",") if one.strip()]
        return values

    @model_validator(mode="after")
    def _identities_are_trusted(self) -> Self:
        if self.trusted_identity_header and not self.trusted_proxies:
            raise ValueError(
                "TRUSTED_PROXIES must list the proxies that may send TRUSTED_IDENTITY_HEADER"
            )
        if (self.first_admin_email is None) != (self.first_admin_password_file is None):
            raise ValueError(
                "FIRST_ADMIN_EMAIL and FIRST_ADMIN_PASSWORD_FILE must be set together, or neither"
            )
        return self

    @model_validator(mode="after")
    def _hosts_are_hosts(self) -> Self:
        for host in self.allowed_hosts:
            if HOST.fullmatch(host) is None:
                raise ValueError(f"ALLOWED_HOSTS: {host!r} is not a host's name, *.name or *")
        return self

    @model_validator(mode="after")
    def _complete_database_url(self) -> Self:
        if self.database_url is not None and self.database_password is not None:
            password = self.database_password.get_secret_value()
            self.database_url = with_password(self.database_url, password)
        return self

    @model_validator(mode="after")
    def _complete_redis_urls(self) -> Self:
        ca_file = str(self.tls_ca_file or "")
        if self.redis_url is not None:
            password = self.redis_password.get_secret_value() if self.redis_password else ""
            redis = RedisUrl.parse(self.redis_url).completed(password=password, ca_file=ca_file)
            self.redis_url = str(redis)
        broker = self.celery_broker_url or ""
        if broker.startswith(REDIS_BROKERS):
            self.celery_broker_url = RedisUrl.parse(broker).completed(ca_file=ca_file).for_celery()
        return self

    @model_validator(mode="after")
    def _safe_in_production(self) -> Self:
        if not self.is_production:
            return self
        secret = self.secret_key.get_secret_value()
        if secret == DEFAULT_SECRET_KEY or len(secret) < 32:
            raise ValueError(
                "SECRET_KEY must be set to 32 random characters or more in production; docker "
                "compose takes it from the file secrets/secret_key, made by deploy/make-secrets.sh"
            )
        previous = self.previous_secret_key
        if previous is not None and len(previous.get_secret_value()) < 32:
            raise ValueError("PREVIOUS_SECRET_KEY must have 32 characters or more in production")
        if not self.allowed_hosts or any(map(WIDE_HOST.fullmatch, self.allowed_hosts)):
            raise ValueError(
                "ALLOWED_HOSTS must name the hosts in production, not * nor a pattern such as *.com"
            )
        if self.database_url is None:
            raise ValueError("DATABASE_URL must be set in production")
        if self.redis_url is None:
            raise ValueError("REDIS_URL must be set in production")
        return self

    @model_validator(mode="after")
    def _workers_outlive_heartbeats(self) -> Self:
        if self.worker_lost_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("WORKER_LOST_SECONDS must be at least three times HEARTBEAT_SECONDS")
        return self

    @model_validator(mode="after")
    def _audit_log_is_kept_a_day(self) -> Self:
        if 0 < self.audit_retention_seconds < YOUNGEST_AUDIT_SECONDS:
            raise ValueError("AUDIT_RETENTION_SECONDS must be 0, or at least a day (86400)")
        return self

    @model_validator(mode="after")
    def _mail_has_a_sender(self) -> Self:
        if (self.smtp_url is None) != (self.mail_from is None):
            raise ValueError("SMTP_URL and MAIL_FROM must be set together, or neither")
        return self

    @model_validator(mode="after")
    def _events_are_kept_for_all_attempts(self) -> Self:
        if not self.webhook_retry_seconds:
            raise ValueError("WEBHOOK_RETRY_SECONDS must have a number for each attempt")
        if sum(self.webhook_retry_seconds) >= self.webhook_retention_seconds:
            raise ValueError(
                "WEBHOOK_RETENTION_SECONDS must be more than all of WEBHOOK_RETRY_SECONDS together"
            )
        return self

    @model_validator(mode="after")
    def _chunks_go_on(self) -> Self:
        if self.chunk_overlap_tokens is not None and self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError("CHUNK_OVERLAP_TOKENS must be less than CHUNK_TOKENS")
        return self

    @property
    def is_production(self) -> bool:
        """Whether this deployment serves real users."""
        return self.environment == "production"

    @property
    def is_development(self) -> bool:
        """Whether this is somebody's own machine."""
        return self.environment == "development"


def load_settings(**overrides: object) -> Settings:
    """Read the settings. Raises `ConfigurationError`, one line that names the variable."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None
    except SettingsError as error:
        # A source wraps what it meets; a file with a secret is the only one that can fail.
        raise ConfigurationError(str(error.__cause__ or error)) from None
    except UnicodeDecodeError:
        # Its own words quote the file, which holds keys.
        raise ConfigurationError("The file .env is not UTF-8 text; convert it.") from None


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        variable = ".".join(str(part) for part in problem["loc"][:1]).upper()
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{variable}: {message}" if variable else message)
    places = "in the environment, in .env or in its secret's file"
    return f"Wrong setting: {'; '.join(problems)}. Set it {places}."
