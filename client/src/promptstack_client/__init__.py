"""The client of Prompt Stack: durable generation and embedding jobs for LLM work."""

from promptstack_client.clients import AsyncClient, Client
from promptstack_client.errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    IdempotencyConflict,
    InvalidRequest,
    NotAuthenticated,
    NotConfigured,
    NotEnded,
    NotFound,
    NotPermitted,
    PromptStackError,
    RateLimited,
    ServerError,
    TimedOut,
    Unavailable,
    UnexpectedAnswer,
    Unsuccessful,
    WaitTimedOut,
)
from promptstack_client.models.jobs import Job, Waits
from promptstack_client.models.runs import Failure, Result, Run
from promptstack_client.models.usage import ProviderCall, Usage
from promptstack_client.paging import AsyncPages, Page, Pages

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncPages",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Failure",
    "IdempotencyConflict",
    "InvalidRequest",
    "Job",
    "NotAuthenticated",
    "NotConfigured",
    "NotEnded",
    "NotFound",
    "NotPermitted",
    "Page",
    "Pages",
    "PromptStackError",
    "ProviderCall",
    "RateLimited",
    "Result",
    "Run",
    "ServerError",
    "TimedOut",
    "Unavailable",
    "UnexpectedAnswer",
    "Unsuccessful",
    "Usage",
    "WaitTimedOut",
    "Waits",
]
