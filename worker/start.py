"""Starts workers, as the command line says."""

import argparse
import sys
import threading
from typing import Any, NoReturn

from celery.signals import worker_ready

from promptstack.config.errors import PromptStackError
from promptstack.config.logging import configure_logging
from promptstack.config.models_file import ModelsFile
from promptstack.config.parent import die_with_parent
from promptstack.config.settings import Settings, load_settings
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.tasks import broker
from promptstack.tasks.worker_services import WorkerServices
from promptstack.worker.arenas import share_one_arena
from promptstack.worker.process import EXIT_FAILED, WorkerProcess
from promptstack.worker.processes import WRONG_SETTINGS, WorkerProcesses


def main() -> int:
    """Run workers until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="promptstack worker")
    parser.add_argument(
        "--concurrency",
        dest="worker_concurrency",
        type=int,
        default=argparse.SUPPRESS,
        help="jobs at once in each process (WORKER_CONCURRENCY)",
    )
    parser.add_argument(
        "--processes", type=_count, help="keep so many worker processes; one a processor is enough"
    )
    parser.add_argument("--with-parent", action="store_true", help="end when the starter ends")
    given = vars(parser.parse_args())
    processes, with_parent = given.pop("processes"), given.pop("with_parent")
    try:
        settings = load_settings(**given)
        configure_logging(settings)
        if processes is None:
            if with_parent:
                die_with_parent()
            return _work(settings)
        # Before the workers are forked, which then have them.
        _import_providers(settings, LLMServiceFactory())
        keeper = WorkerProcesses(
            processes, lambda: _work_for_keeper(settings), with_parent=with_parent
        )
        return keeper.run()
    except PromptStackError as error:
        return _say(error)


def _work(settings: Settings) -> int:
    """Run one worker. Raises `PromptStackError` where it can't start."""
    share_one_arena()  # before there are threads
    # Before the first connection: kombu keeps the transport class that it used first.
    broker.use_in_this_process()
    with WorkerServices.open(settings) as services:

        def import_providers(**_: Any) -> None:
            """Import SDKs while it waits: the first job of each would wait for up to a second."""
            given = [settings, services.factory]
            threading.Thread(target=_import_providers, args=given, name="sdks", daemon=True).start()

        worker_ready.connect(import_providers, weak=False)
        services.check_connections()
        return WorkerProcess(services).run()


def _work_for_keeper(settings: Settings) -> int:
    """Run one worker. The exit code says whether another start may help."""
    try:
        return _work(settings)
    except PromptStackError as error:
        return EXIT_FAILED if _say(error) and error.transient else WRONG_SETTINGS


def _import_providers(settings: Settings, factory: LLMServiceFactory) -> None:
    """Import the SDKs of the providers that are configured."""
    own = {
        "openai": settings.openai_api_key or settings.openai_base_url,
        "anthropic": settings.anthropic_api_key or settings.anthropic_base_url,
        "gemini": settings.gemini_api_key or settings.gemini_base_url,
    }
    named = ModelsFile.read(settings.models_file).providers
    # One without an address or a key of its own only says more about a provider of `own`.
    wires = {provider.wire for provider in named if provider.base_url or provider.key_setting}
    for name in sorted(wires | {name for name, given in own.items() if given}):
        factory.service_class(name)


def _count(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= 64:
        raise argparse.ArgumentTypeError(f"{given[:20]!r} is no number from 1 to 64")
    return int(given)


def _say(error: PromptStackError) -> int:
    sys.stderr.write(f"promptstack worker: {error.for_operators()}\n")
    return WRONG_SETTINGS


def run() -> NoReturn:
    """Work, and end the process."""
    sys.exit(main())
