"""`promptstack doctor`: checks settings, servers, workers and providers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import typer
from redis.exceptions import RedisError
from rich.table import Table
from rich.text import Text

from promptstack.api.cli.connection import connected, needs_embedded
from promptstack.api.cli.terminal import JOB_FAILED, JsonFlag, describe, out, print_items
from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.repositories.migrations import pending
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.base import LLMService
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.connections import check_redis

MOST_NAMED = 5
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]--[/]", "missing": "[red]no[/]"}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    status: str
    """ok; warning: works without it; missing: does not work without it."""
    detail: str


def doctor(as_json: JsonFlag = False) -> None:
    """Check what is configured, what answers and what is missing."""
    with connected(start_servers=True) as stack:
        findings = list(examine(stack))
    if as_json:
        print_items(map(asdict, findings))
    else:
        table = Table.grid(padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row(MARKS[finding.status], finding.name, Text(finding.detail))
        out.print(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(JOB_FAILED)


def examine(stack: PromptStack) -> Iterator[Finding]:
    """Check settings, servers, workers and providers, one after the other."""
    settings = stack.settings
    where = "embedded servers" if needs_embedded(settings) else "DATABASE_URL and REDIS_URL"
    yield Finding("settings", "ok", f"{settings.environment}, using {where}")
    yield _try("PostgreSQL", lambda: f"version {stack.ledger.ping()}")
    yield _try("schema", lambda: _schema(stack))
    yield _try("Redis", lambda: _redis(stack))
    yield _try("broker", lambda: _broker(stack))
    yield _try("connections", lambda: _connections(stack))
    yield _workers(stack)
    yield from _waits(stack)
    for name in stack.factory.names():
        yield _provider(stack, name)
    for name in sorted(stack.models_file.named() - set(stack.factory.names())):
        yield Finding("MODELS_FILE", "warning", f"speaks of {name!r}, which is no provider")
    for variable, name in (
        ("DEFAULT_LLM_PROVIDER", settings.default_llm_provider),
        ("DEFAULT_EMBEDDING_PROVIDER", settings.default_embedding_provider),
    ):
        if name not in stack.factory.names():
            known = ", ".join(stack.factory.names())
            yield Finding("default", "missing", f"{variable}={name} is no provider; known: {known}")


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except PromptStackError as error:
        return Finding(name, "missing", error.for_operators())
    except Exception as error:  # noqa: BLE001 - whatever it is, the doctor reports it and goes on
        said = " ".join(str(error).split())
        return Finding(name, "missing", f"{type(error).__name__}: {said}")


def _schema(stack: PromptStack) -> str:
    if pending(stack.ledger.engine):
        raise PromptStackError("is missing or out of date; run `promptstack migrate`")
    return "up to date"


def _redis(stack: PromptStack) -> str:
    try:
        server = stack.redis.info("server")
        keeps = "with" if stack.redis.info("persistence").get("aof_enabled") else "without"
    except (RedisError, OSError) as error:
        check_redis(stack.redis)
        said = " ".join(str(error).split()).rstrip(".")
        raise PromptStackError(
            "Redis could not be reached or broke the connection; check REDIS_URL and that it runs. "
            f"The client said: {said}."
        ) from error
    version = server.get("valkey_version") or server.get("redis_version")
    return f"version {version}, {keeps} append-only file"


def _broker(stack: PromptStack) -> str:
    waiting = {str(queue): stack.publisher.waiting(queue) for queue in Queue}
    return ", ".join(f"{count} {kind} waiting" for kind, count in waiting.items())


def _connections(stack: PromptStack) -> str:
    stack.check_connections()
    return "no proxy, certificate file or password that could not work"


def _workers(stack: PromptStack) -> Finding:
    try:
        with stack.ledger.transaction() as unit:
            alive = unit.workers.count_alive(stack.settings.worker_lost_seconds)
            open_jobs = unit.jobs.count_open()
    except PromptStackError as error:
        return Finding("workers", "missing", str(error))
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(open_jobs.items()))
    if alive:
        return Finding("workers", "ok", f"{alive} alive; jobs: {jobs or 'none open'}")
    return Finding("workers", "warning", "none alive; start `promptstack up` or `worker`")


def _waits(stack: PromptStack) -> Iterator[Finding]:
    with suppress(PromptStackError):  # where the ledger is away, the lines above say so
        for waits in stack.rate_limited_jobs.who():
            yield Finding("waiting", "warning", describe(waits))


def _provider(stack: PromptStack, name: str) -> Finding:
    """Whether a provider answers, and what it can do. This costs nothing."""
    try:
        service = stack.providers.get(name)
        found = stack.loop.run(service.examine())
    except PromptStackError as error:
        return Finding(name, "warning", str(error))
    if not found.answers:
        return Finding(name, "warning", found.reason or "does not answer")
    said = ["answers", *(_of_kind(stack, service, kind) for kind in found.can)]
    missing = [
        model
        for kind in found.can
        if (model := service.default_models[kind]) and found.models and model not in found.models
    ]
    if missing:
        said.append(f"its list has no {', '.join(missing)}, but {_some(found.models or ())}")
    elif found.models is None and not service.known_models:
        said.append("it has no list of models")
    elif found.models and None in service.default_models.values():
        said.append(f"it lists {_some(found.models)}")
    return Finding(name, "warning" if missing else "ok", "; ".join(said))


def _of_kind(stack: PromptStack, service: LLMService, kind: Capability) -> str:
    """What a provider's default model of one kind can do."""
    model = service.default_models[kind]
    if model is None:
        return f"{kind}, of a model that each job names"
    facts = [model]
    if kind is Capability.EMBEDDING:
        limits = service.limits_of(model)
        facts.append(f"{limits.items:,} texts a call")
        facts += [f"{limits.text_tokens:,} tokens a text"] if limits.text_tokens else []
    free = {"input_tokens": 0, "output_tokens": 0}
    if stack.prices.cost(service.name, model, **free) is None:
        facts.append("no known price")
    return f"{kind} ({', '.join(facts)})"


def _some(models: Sequence[str]) -> str:
    more = f" and {len(models) - MOST_NAMED} more" if len(models) > MOST_NAMED else ""
    return ", ".join(models[:MOST_NAMED]) + more
