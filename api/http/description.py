"""The routes of the API, and their description (OpenAPI 3.1) that clients are generated from."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from promptstack.api.http import (
    audit,
    budgets,
    chat,
    collections,
    documents,
    embeddings,
    events,
    flags,
    generations,
    health,
    jobs,
    keys,
    notifications,
    operations,
    overview,
    run_outputs,
    runs,
    search,
    sessions,
    usage,
    users,
    webhooks,
)
from promptstack.api.http.examples import EXAMPLES
from promptstack.api.http.problems import MEDIA_TYPE, RESPONSES
from promptstack.api.permissions import permission_of_route
from promptstack.config.settings import Settings

RESOURCES = (
    generations.router,
    chat.router,
    embeddings.router,
    jobs.router,
    operations.router,
    runs.router,
    run_outputs.router,
    events.router,
    collections.router,
    documents.router,
    search.router,
    usage.router,
    keys.router,
    budgets.router,
    audit.router,
    sessions.router,
    users.router,
    flags.router,
    overview.router,
    notifications.router,
    webhooks.router,
)
"""What lies below API_V1_PREFIX."""

SUMMARY = "Durable generation and embedding jobs: each ends, and no answer is paid for twice."
TAGS = {
    "generations": "Enqueue one generation, or wait for its answer.",
    "embeddings": "Enqueue the embedding of one document.",
    "jobs": "Look at jobs, cancel and retry them; enqueue many at once.",
    "operations": "Retry or cancel all jobs that a filter matches, and see how far it is.",
    "runs": "Batches of many items under one id, and their results.",
    "collections": "What documents and runs belong to, and what is searched.",
    "documents": "Put, list, show and delete documents.",
    "search": "Find passages by their meaning and their words.",
    "usage": "What was asked of providers, and what it cost.",
    "keys": "API keys.",
    "webhooks": "Where the ends of jobs and runs are told to, and what became of it.",
    "budgets": "Spend caps of keys, users and the deployment.",
    "audit": "Who did what, for administrators.",
    "sessions": "Sign in and out.",
    "users": "Users, and what they may do.",
    "flags": "Feature flags.",
    "notifications": "Mails to users.",
    "health": "Whether the server, the database and Redis answer, and the deployment at a glance.",
}
"""Every tag, and what its routes do."""


ACCEPTED_HEADERS = {
    "Location": {
        "description": "Where to ask how it stands.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Retry-After": {
        "description": "When to ask, in seconds.",
        "schema": {"type": "integer", "minimum": 0},
    },
}


class DescribedApp(FastAPI):
    """An application whose description says what FastAPI alone leaves out."""

    def openapi(self) -> dict[str, Any]:
        """The description as it is served at `/openapi.json`."""
        if self.openapi_schema is None:
            _complete(super().openapi(), self.state.prefix)
        return super().openapi()


def described_app(settings: Settings, **options: Any) -> FastAPI:
    """An application with all routes, which opens nothing by itself."""
    app = DescribedApp(
        title=settings.app_name,
        summary=SUMMARY,
        version=settings.version,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": "/", "description": "The server that has sent this."}],
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        redirect_slashes=False,
        responses=RESPONSES,
        generate_unique_id_function=_operation_id,
        **options,
    )
    app.state.prefix = settings.api_v1_prefix
    app.include_router(health.router)
    for router in RESOURCES:
        app.include_router(router, prefix=settings.api_v1_prefix)
    return app


def describe(settings: Settings) -> dict[str, Any]:
    """The description of the API with these settings."""
    return described_app(settings).openapi()


def _operation_id(route: APIRoute) -> str:
    """The function's name: short, and what the method of a generated client is called."""
    return route.name


def _complete(document: dict[str, Any], prefix: str) -> None:
    """Say of each operation which keys open it, what its errors are, and what a body may be."""
    schemes: list[dict[str, list[str]]] = [
        {name: []} for name in document["components"]["securitySchemes"]
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            operation["security"] = [] if _is_public(method, path, prefix) else schemes
            for status, response in operation["responses"].items():
                if status in RESPONSES:
                    response["content"] = {MEDIA_TYPE: response["content"][MEDIA_TYPE]}
                elif status == "202":
                    response["headers"] = ACCEPTED_HEADERS
            if operation["operationId"] in EXAMPLES:
                content = operation["requestBody"]["content"]["application/json"]
                content["example"] = EXAMPLES[operation["operationId"]]


def _is_public(method: str, path: str, prefix: str) -> bool:
    """Whether it is for everybody, as what lies outside of the prefix."""
    if not path.startswith(prefix):
        return True
    return permission_of_route(method.upper(), path.removeprefix(prefix)).is_public
