"""`promptstack doctor`: checks settings, servers, workers and providers, all at once."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import typer
from redis.exceptions import RedisError
from rich.table import Table
from rich.text import Text

from promptstack.api.cli.connection import connected, needs_embedded
from promptstack.api.cli.terminal import JOB_FAILED, JsonFlag, describe, out, print_items
from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.repositories.migrations import pending
from promptstack.services.llm.answers import Capability, Examined
from promptstack.services.llm.base import LLMService
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.connections import check_redis

MOST_NAMED = 5
ANSWER_SECONDS = 2.0
"""How long an answer is waited for. All are asked at once, so that this is the longest of all."""
LEAST_SECONDS = 1.0
"""How long it is, where the start has used up the rest: a person waits for both."""
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
        # A start is computing, nearly all of it.
        spent = time.process_time()
        findings = list(examine(stack, max(LEAST_SECONDS, ANSWER_SECONDS - spent)))
    if as_json:
        print_items(map(asdict, findings))
    else:
        table = Table.grid(padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row(MARKS[finding.status], finding.name, Text(finding.detail))
        out.print(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(JOB_FAILED)


def examine(stack: PromptStack, patience: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """Check settings, servers, workers and providers; one that hangs is waited for so long."""
    settings = stack.settings
    where = "embedded servers" if needs_embedded(settings) else "DATABASE_URL and REDIS_URL"
    yield Finding("settings", "ok", f"{settings.environment}, using {where}")
    # Made before threads ask for them, of which each would make its own.
    _ = stack.ledger, stack.redis, stack.publisher, stack.factory, stack.rate_limited_jobs
    servers = {
        "PostgreSQL": _ask(_try, "PostgreSQL", lambda: f"version {stack.ledger.ping()}"),
        "schema": _ask(_try, "schema", lambda: _schema(stack)),
        "Redis": _ask(_try, "Redis", lambda: _redis(stack)),
        "broker": _ask(_try, "broker", lambda: _broker(stack)),
        "connections": _ask(_try, "connections", lambda: _connections(stack)),
        "workers": _ask(lambda: [_workers(stack), *_waits(stack)]),
    }
    if (mailer := stack.mailer) is not None:
        servers["mail"] = _ask(_try, "mail", lambda: stack.loop.run(mailer.check()))
    # Meanwhile SDKs are imported, which takes long. Each provider is asked as soon as its own is,
    # and those across a network first: what works in this process is loaded while they think.
    across = {server.name for server in stack.servers}
    names = sorted(stack.factory.names(), key=lambda name: name not in across)
    asked = {name: _ask_provider(stack, name, patience) for name in names}
    until = time.monotonic() + patience
    for name, found in servers.items():
        try:
            yield from found.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            yield Finding(name, "missing", f"did not answer within {patience:.1f} s")
    for name in stack.factory.names():
        yield asked[name]()
    for name in sorted(stack.models_file.named() - set(stack.factory.names())):
        yield Finding("MODELS_FILE", "warning", f"speaks of {name!r}, which is no provider")
    for variable, name in (
        ("DEFAULT_LLM_PROVIDER", settings.default_llm_provider),
        ("DEFAULT_EMBEDDING_PROVIDER", settings.default_embedding_provider),
    ):
        if name not in stack.factory.names():
            known = ", ".join(stack.factory.names())
            yield Finding("default", "missing", f"{variable}={name} is no provider; known: {known}")


def _ask(look: Callable[..., Finding | list[Finding]], *arguments: Any) -> Future[list[Finding]]:
    """Begin a check. Nobody waits for its thread: a server that hangs would keep us from ending."""
    asked: Future[list[Finding]] = Future()

    def run() -> None:
        try:
            found = look(*arguments)
            asked.set_result(found if isinstance(found, list) else [found])
        except Exception as error:  # noqa: BLE001 - raised again where the result is read
            asked.set_exception(error)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return asked


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


def _waits(stack: PromptStack) -> list[Finding]:
    try:
        waiting = stack.rate_limited_jobs.who()
    except PromptStackError:
        return []  # the lines above say that the ledger is away
    return [Finding("waiting", "warning", describe(waits)) for waits in waiting]


def _ask_provider(stack: PromptStack, name: str, patience: float) -> Callable[[], Finding]:
    """Ask whether a provider answers, and what it can do; waits when called. It costs nothing."""
    servers = {server.name: server for server in stack.servers}
    if name in servers and not stack.factory.is_set_up(name):
        # Said without its SDK, which takes up to a second to import.
        needs = f"{name} needs an API key, which is read from {servers[name].key_source}."
        return partial(Finding, name, "warning", needs)
    try:
        service = stack.providers.get(name)
    except PromptStackError as error:
        return partial(Finding, name, "warning", str(error))
    # What works in this process does not hang, it computes.
    limit = patience if name in servers else None
    found = stack.loop.submit(_examined(service, limit))
    return lambda: _told(stack, service, name, found.result())


async def _examined(service: LLMService, patience: float | None) -> Examined:
    try:
        async with asyncio.timeout(patience):
            return await service.examine()
    except TimeoutError:
        return Examined(False, reason=f"did not answer within {patience:.1f} s.")
    except PromptStackError as error:
        return Examined(False, reason=str(error))


def _told(stack: PromptStack, service: LLMService, name: str, found: Examined) -> Finding:
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
