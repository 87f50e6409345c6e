"""What services are told at their start, read off the settings."""

import json
from typing import Any

from promptstack.config.errors import ConfigurationError
from promptstack.config.models_file import ModelsFile
from promptstack.config.providers import NamedProvider, Wire
from promptstack.config.settings import Settings
from promptstack.embedded.servers import running
from promptstack.services.errors import InvalidInput
from promptstack.services.files.service import FileBounds
from promptstack.services.flags.known import DEFAULTS
from promptstack.services.flags.rules import Rule, read_rules
from promptstack.services.flags.service import checked_name
from promptstack.services.jobs.new_job import JobDefaults
from promptstack.services.llm.learned import LearnedFacts
from promptstack.services.llm.request_bounds import JsonBounds, RequestBounds
from promptstack.services.notifications.service import MailDefaults
from promptstack.services.objects.storage import StorageOptions
from promptstack.services.runs.intake.new_run import RunDefaults
from promptstack.services.sources.reading import SourceBounds
from promptstack.services.streams.writer import StreamBounds
from promptstack.services.validation.schema_bounds import SchemaBounds
from promptstack.services.validation.webhook_urls import WebhookRules


def server_urls(settings: Settings) -> tuple[str, str]:
    """The URLs of PostgreSQL and Redis: those that are set, or else the embedded servers'.

    Raises `ConfigurationError` where there is neither.
    """
    database_url, redis_url = settings.database_url, settings.redis_url
    if database_url is None or redis_url is None:
        embedded = running(settings.state_dir)
        if embedded is None:
            raise ConfigurationError(
                "Nothing is running here. Start it with `promptstack up`, or set "
                "DATABASE_URL and REDIS_URL."
            )
        database_url = database_url or embedded.database_url
        redis_url = redis_url or embedded.redis_url
    return database_url, redis_url


def servers(settings: Settings, models_file: ModelsFile) -> list[NamedProvider]:
    """The providers across a network: those that have their own settings, and those named."""
    named = {one.name: one for one in models_file.providers}
    addresses: dict[Wire, str | None] = {
        "openai": settings.openai_base_url,
        "anthropic": settings.anthropic_base_url,
        "gemini": settings.gemini_base_url,
    }
    for wire, address in addresses.items():
        server = named.get(wire) or NamedProvider(name=wire, wire=wire)
        if server.base_url is None:
            server = server.model_copy(update={"base_url": address})
        named[wire] = server
    return list(named.values())


def client_options(
    settings: Settings, servers: list[NamedProvider], learned: LearnedFacts
) -> dict[str, dict[str, Any]]:
    """What the client of each server is made with."""
    keys = {
        "openai": settings.openai_api_key,
        "anthropic": settings.anthropic_api_key,
        "gemini": settings.gemini_api_key,
    }
    options = {}
    for server in servers:
        key = server.read_key() or keys.get(server.name)
        options[server.name] = {
            "api_key": key.get_secret_value() if key else None,
            "base_url": server.base_url,
            "api_version": server.api_version,
            "timeout": settings.provider_timeout_seconds,
            "learned": learned,
        }
    return options


def stream_bounds(settings: Settings) -> StreamBounds:
    """How much of a text Redis holds."""
    return StreamBounds(
        most_pieces=settings.stream_max_pieces,
        most_bytes=settings.stream_max_bytes,
        ttl_seconds=settings.stream_ttl_seconds,
    )


def request_bounds(settings: Settings) -> RequestBounds:
    """How large a generation's parameters may be."""
    json_bounds = JsonBounds(
        settings.max_json_values, settings.max_json_depth, settings.max_option_bytes
    )
    return RequestBounds(json_bounds, schema_bounds(settings))


def schema_bounds(settings: Settings) -> SchemaBounds:
    """How large a JSON schema may be."""
    return SchemaBounds(
        nodes=settings.max_schema_nodes,
        depth=settings.max_schema_depth,
        characters=settings.max_schema_characters,
        properties=settings.max_schema_properties,
        enum_members=settings.max_schema_enum_members,
        patterns=settings.max_schema_patterns,
        pattern_characters=settings.max_schema_pattern_characters,
        patterns_characters=settings.max_schema_patterns_characters,
        expanded=settings.max_schema_expanded,
        judging_steps=settings.max_judging_steps,
        judging_seconds=settings.max_judging_seconds,
    )


def feature_flags(settings: Settings) -> dict[str, tuple[Rule, ...]]:
    """The flags that hold where the database has none of that name.

    Raises `ConfigurationError`.
    """
    flags = dict(DEFAULTS)
    for name, said in json.loads(settings.feature_flags).items():
        try:
            flags[checked_name(name)] = read_rules(said)
        except (ValueError, InvalidInput) as error:
            raise ConfigurationError(
                f"Wrong setting: FEATURE_FLAGS: {name[:64]!r}: {error}"
            ) from error
    return flags


def job_defaults(settings: Settings, bounds: RequestBounds) -> JobDefaults:
    """What holds for jobs whose caller says nothing else."""
    return JobDefaults(
        generation_provider=settings.default_llm_provider,
        embedding_provider=settings.default_embedding_provider,
        max_retries=settings.job_max_retries,
        expires_seconds=settings.job_expires_seconds,
        max_text_bytes=settings.max_text_bytes,
        max_metadata_bytes=settings.max_metadata_bytes,
        request_bounds=bounds,
        webhook_rules=webhook_rules(settings),
    )


def webhook_rules(settings: Settings) -> WebhookRules:
    """Which addresses events are sent to."""
    return WebhookRules.of(
        allow_http=settings.webhook_allow_http, allowed_hosts=settings.webhook_allowed_hosts
    )


def mail_defaults(settings: Settings) -> MailDefaults | None:
    """How mail is sent; None where no mail server is set."""
    if settings.smtp_url is None or settings.mail_from is None:
        return None
    return MailDefaults(settings.mail_from, settings.mail_expires_seconds)


def run_defaults(settings: Settings, bounds: RequestBounds) -> RunDefaults:
    """What holds for runs whose caller says nothing else."""
    return RunDefaults(
        generation_provider=settings.default_llm_provider,
        embedding_provider=settings.default_embedding_provider,
        max_retries=settings.job_max_retries,
        expires_seconds=settings.run_expires_seconds,
        in_flight=settings.run_in_flight,
        max_text_bytes=settings.max_text_bytes,
        block_bytes=settings.run_block_bytes,
        request_bounds=bounds,
        source_bounds=SourceBounds(
            settings.max_template_bytes,
            settings.max_template_places,
            settings.max_record_values,
            settings.max_source_part_bytes,
        ),
        webhook_rules=webhook_rules(settings),
    )


def file_bounds(settings: Settings) -> FileBounds:
    """How much a user may keep in files."""
    return FileBounds(
        settings.files_of_one_user, settings.file_bytes_of_one_user, settings.batch_file_seconds
    )


def storage_options(settings: Settings) -> StorageOptions:
    """Where objects are read and written."""
    access, secret = settings.object_storage_access_key, settings.object_storage_secret_key
    return StorageOptions(
        places=settings.object_storage_places,
        endpoint=settings.object_storage_endpoint,
        region=settings.object_storage_region,
        access_key=access.get_secret_value() if access else None,
        secret_key=secret.get_secret_value() if secret else None,
    )
