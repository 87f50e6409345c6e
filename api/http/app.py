"""The HTTP application."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from promptstack.api.http.anthropic.errors import AnthropicErrors
from promptstack.api.http.anthropic.resources import RESOURCES as ANTHROPIC_RESOURCES
from promptstack.api.http.description import described_app
from promptstack.api.http.errors import HANDLERS
from promptstack.api.http.first_admin import keep_trying
from promptstack.api.http.health import HealthCheck
from promptstack.api.http.key_lookups import KeyLookups
from promptstack.api.http.middleware import FramingMiddleware, HeadMiddleware, ProblemMiddleware
from promptstack.api.http.openai.errors import OpenAIErrors
from promptstack.api.http.openai.resources import RESOURCES as OPENAI_RESOURCES
from promptstack.api.http.openai.vector_calls import VectorCalls
from promptstack.api.http.route import LARGE_HANDLED_AT_ONCE, LargeBodies
from promptstack.api.http.search import SearchSlots
from promptstack.api.http.sessions import LOGINS_AT_ONCE, LoginSlots
from promptstack.api.http.still_allowed import StillAllowed
from promptstack.api.http.transfers import Downloads, TransferSlots, Uploads
from promptstack.services.runs.results import READ_AT_ONCE
from promptstack.tasks.composition import PromptStack

SUMS_AT_ONCE = 4
"""Threads that sum usage or count jobs, of which each holds a connection for long."""
BLOCKS_AT_ONCE = 4
"""Threads that make blocks of downloads. More make none the sooner."""


def create_app(stack: PromptStack) -> FastAPI:
    """Make the application over `stack`, which stays the caller's to close."""
    settings = stack.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # One thread for each database connection, less those of large bodies, of logins, of sums,
        # of downloads and of /healthz. A burst of requests waits for a thread instead of failing.
        connections = settings.database_pool_size + settings.database_max_overflow
        others = LARGE_HANDLED_AT_ONCE + LOGINS_AT_ONCE + SUMS_AT_ONCE + BLOCKS_AT_ONCE + 1
        # Who reads an upload has a second connection, which stores what was read. A block is read
        # while the one before it is made.
        others += settings.max_uploads + READ_AT_ONCE
        to_thread.current_default_thread_limiter().total_tokens = max(1, connections - others)
        sums = ThreadPoolExecutor(SUMS_AT_ONCE, "sums")
        asyncio.get_running_loop().set_default_executor(sums)
        waiting = asyncio.create_task(keep_trying(stack)) if settings.first_admin_email else None
        yield
        if waiting is not None:
            waiting.cancel()
        stack.events.close()

    app = described_app(settings, lifespan=lifespan, exception_handlers=HANDLERS)
    for router in (*OPENAI_RESOURCES, *ANTHROPIC_RESOURCES):
        app.include_router(router)
    app.state.stack = stack
    app.state.health = HealthCheck(stack)
    app.state.events = stack.events
    app.state.key_lookups = KeyLookups(stack.keys.find_presented)
    app.state.still_allowed = StillAllowed()
    app.state.login_slots = LoginSlots()
    app.state.search_slots = SearchSlots()
    app.state.uploads = Uploads(
        TransferSlots(
            "uploads",
            most=settings.max_uploads,
            of_one_user=settings.max_uploads_of_one_user,
            settings="MAX_UPLOADS",
        ),
        max_bytes=settings.max_upload_bytes,
        seconds=settings.upload_seconds,
    )
    app.state.downloads = Downloads(
        most=settings.max_downloads,
        of_one_user=settings.max_downloads_of_one_user,
        made_at_once=BLOCKS_AT_ONCE,
    )
    app.state.large_bodies = LargeBodies(settings.max_body_values)
    app.state.vector_calls = VectorCalls(stack)
    # Made now: the first two requests would make them twice, in two threads.
    _ = (
        stack.keys,
        stack.request_limits,
        stack.owners,
        stack.jobs,
        stack.runs,
        stack.run_results,
        stack.run_downloads,
        stack.usage,
    )
    _ = (
        stack.audit,
        stack.recent_usage,
        stack.flags,
        stack.flag_service,
        stack.overview,
        stack.notifications,
        stack.webhooks,
        stack.webhook_deliveries,
    )
    _ = stack.users, stack.sign_in
    _ = stack.collections, stack.documents, stack.search

    # The last one added is the outermost.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False
    )
    app.add_middleware(FramingMiddleware)
    app.add_middleware(ProblemMiddleware)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(AnthropicErrors)
    app.add_middleware(HeadMiddleware)
    return app
