"""A run on a local deployment: servers, a simulator and workers that it starts. `make chaos`."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from promptstack.chaos.batch import Batch
from promptstack.chaos.clients import Clients, api_process
from promptstack.chaos.driver import Act, Hit, alone, on_workers
from promptstack.chaos.judge import Judge
from promptstack.chaos.load import Load, Target
from promptstack.chaos.plan import LOST_SECONDS, WITHOUT_API, Fault, Planned, draw
from promptstack.chaos.run import Order, run
from promptstack.chaos.scorecard import Scorecard
from promptstack.chaos.servers import Servers, dsn
from promptstack.chaos.workers import WORKER, LocalWorkers
from promptstack.config.celery import kombu_url
from promptstack.config.settings import load_settings
from promptstack.repositories.migrations import upgrade
from promptstack.simulator.process import MODELS, SimulatorProcess
from promptstack.tasks.composition import PromptStack

SLOTS = 16
WORKERS = 3
MODEL = "gpt-5-mini"
EMBEDDING_MODEL = "text-embedding-3-small"
MODELS_FILE = "models.toml"
LATENCY_SECONDS = 0.3
DELAY_SECONDS = 0.3
PATIENCE_SECONDS = 130.0
LIMITS = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 600000\nin_flight = 200\n'
"""Out of the way: what is tried here is durability, and without them workers begin carefully."""
TROUBLE: tuple[dict[str, object], ...] = (
    {"rate": 0.2, "kind": "status", "status": 503},
    {"rate": 0.1, "kind": "status", "status": 429, "retry_after": 1},
    {"rate": 0.1, "kind": "reset"},
    {"rate": 0.05, "kind": "hang"},
)
"""What the provider does in its bad moments; none of it is billed."""


def run_on_local(
    *,
    seed: int,
    jobs: int,
    items: int = 0,
    seconds: float,
    kills: int,
    times: int,
    clients: int = 0,
    latency_seconds: float = LATENCY_SECONDS,
    lost_seconds: float = LOST_SECONDS,
    folder: Path,
    say: Callable[[str], None],
) -> Scorecard:
    """Start everything, run, judge, and leave nothing behind but the logs in `folder`.

    With `items`, a run of so many goes beside the jobs. With `clients`, so many of them send the
    jobs by HTTP, to a server that is killed as well; `latency_seconds` is the provider's.
    """
    faults = tuple(Fault) if clients else WITHOUT_API
    plan = draw(seed, seconds, kills=kills, times=times, faults=faults, lost_seconds=lost_seconds)
    with ExitStack() as opened:
        provider = opened.enter_context(SimulatorProcess())
        (folder / MODELS_FILE).write_text(MODELS.read_text() + LIMITS)
        provider.set_latency(latency_seconds, spread=0.5)
        servers = Servers(Path(tempfile.mkdtemp(prefix="promptstack-chaos-")))
        opened.callback(servers.stop)
        servers.start()
        environment = _environment(servers, provider, folder, lost_seconds)
        stack = opened.enter_context(_open(environment))
        upgrade(stack.ledger.engine)
        by_line = environment | {
            "DATABASE_URL": servers.database_url_by_line,
            "REDIS_URL": servers.redis_url_by_line,
            "CELERY_BROKER_URL": kombu_url(servers.redis_url_by_line),
        }
        workers = LocalWorkers([(environment, WORKERS - 1), (by_line, 1)], folder, WORKER)
        opened.callback(workers.stop)
        workers.wait_until_ready()
        say(f"{WORKERS} workers run; {len(plan)} faults in {seconds:.0f} s; logs: {folder}")
        name, sending = f"chaos {seed}", seconds * 0.9
        acts = acts_on_all(servers, workers, provider)
        target = Target("openai", MODEL, EMBEDDING_MODEL)
        load: Load | Clients
        if clients:
            api_environment = {**os.environ, **environment}
            api = opened.enter_context(api_process(api_environment, folder / "api.log"))
            acts[Fault.API_KILL] = alone(threading.Lock(), lambda seconds: api.kill())
            key = stack.keys.create("chaos@example.org", "chaos")
            load = Clients(api.url, key, target, name=name, clients=clients, seconds=sending)
        else:
            load = Load(stack.jobs, stack.ledger, target, name=name, seconds=sending)
        database = dsn(servers.database_url)
        batch = None
        if items:
            books = provider.ledger
            batch = Batch(stack.runs, MODEL, name=name, items=items, dsn=database, books=books)
        return run(
            Order(seed, jobs, plan, SLOTS * WORKERS, PATIENCE_SECONDS, lost_seconds),
            load,
            acts,
            Judge(database),
            books=provider.ledger,
            progress=stack.progress,
            say=say,
            batch=batch,
        )


def acts_on_all(
    servers: Servers, workers: LocalWorkers, provider: SimulatorProcess
) -> dict[Fault, Act]:
    """What can be done to a local deployment."""

    def partition(planned: Planned) -> Hit:
        with line_lock:
            last = workers.last()
            hit = Hit(last.worker_id if last else None, datetime.now(UTC))
            servers.lines.cut()
            time.sleep(planned.seconds)
            servers.lines.mend()
        return hit

    def delay(seconds: float) -> None:
        servers.lines.delay(DELAY_SECONDS)
        time.sleep(seconds)
        servers.lines.delay(0.0)

    def misbehave(seconds: float) -> None:
        provider.set_fault_rates(*TROUBLE)
        time.sleep(seconds)
        provider.set_fault_rates()

    line_lock, provider_lock = threading.Lock(), threading.Lock()
    postgres, redis = servers.postgres_lock, servers.redis_lock
    return {
        **on_workers(workers),
        Fault.FLUSH: alone(redis, lambda seconds: servers.flush_redis()),
        Fault.REDIS_KILL: alone(redis, lambda seconds: servers.kill_redis(seconds, replace=False)),
        Fault.REDIS_REPLACE: alone(
            redis, lambda seconds: servers.kill_redis(seconds, replace=True)
        ),
        Fault.REDIS_FULL: alone(redis, servers.fill_redis),
        Fault.POSTGRES_KILL: alone(postgres, servers.kill_postgres),
        Fault.POSTGRES_RESTART: alone(postgres, servers.restart_postgres),
        Fault.POSTGRES_FULL: alone(postgres, servers.fill_postgres),
        Fault.CUT: alone(postgres, lambda seconds: servers.cut_connections()),
        Fault.PARTITION: partition,
        Fault.DELAY: alone(line_lock, delay),
        Fault.PROVIDER: alone(provider_lock, misbehave),
    }


def _open(environment: Mapping[str, str]) -> PromptStack:
    """The stack of whoever enqueues."""
    given: dict[str, object] = {name.lower(): value for name, value in environment.items()}
    given["PROMPTSTACK_STATE_DIR"] = given.pop("promptstack_state_dir")
    return PromptStack.open(load_settings(_env_file=None, **given))


def _environment(
    servers: Servers, provider: SimulatorProcess, folder: Path, lost_seconds: float
) -> dict[str, str]:
    """The settings of workers."""
    return {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "CELERY_BROKER_URL": kombu_url(servers.redis_url),
        "OPENAI_API_KEY": "sk-chaos",
        "OPENAI_BASE_URL": provider.url,
        "MODELS_FILE": str(folder / MODELS_FILE),
        "PROVIDER_TIMEOUT_SECONDS": "10",
        "WORKER_CONCURRENCY": str(SLOTS),
        "WORKER_LOST_SECONDS": str(lost_seconds),
        "SHUTDOWN_GRACE_SECONDS": "2",
        "JOB_MAX_RETRIES": "10",
        "RETRY_BACKOFF_MAX_SECONDS": "5",
        "PROMPTSTACK_STATE_DIR": str(folder / "state"),
    }
