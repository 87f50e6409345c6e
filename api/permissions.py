"""Who may do what: one table for every route and every command.

Another user's job, run, key or document does not exist for a caller: 404. Administrators, by a
session or by a key with the scope `admin`, reach everybody's. A command reaches the ledger with the
deployment's own credentials, so who can run one is a super_admin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from promptstack.repositories.access_models import Role, Scope
from promptstack.services.access.caller import Caller
from promptstack.services.errors import NotPermitted

RANKS: Mapping[Role, int] = {Role.USER: 0, Role.ADMIN: 1, Role.SUPER_ADMIN: 2}


class Whose(StrEnum):
    """Whose objects an action touches."""

    NOBODYS = "-"
    OWN = "one's own; admins: all"
    ONLY_OWN = "one's own, also for admins"
    ALL = "everybody's"


@dataclass(frozen=True, kw_only=True)
class Permission:
    """What one action needs, and where it is found."""

    action: str
    role: Role = Role.USER
    """The least role."""
    scope: Scope | None = None
    """What an API key needs; who has signed in has every scope."""
    whose: Whose = Whose.NOBODYS
    needs_sign_in: bool = False
    """Whether an API key is not enough: it could make itself a way in without its limits."""
    is_public: bool = False
    """Whether nobody has to say who they are."""
    routes: tuple[str, ...] = ()
    """Methods and paths below API_V1_PREFIX; whole paths of what lies beside it."""
    commands: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        """The least role, in a word."""
        return "anybody" if self.is_public else str(self.role)

    @property
    def scope_of_key(self) -> str:
        """What a key needs, in a word."""
        if self.needs_sign_in:
            return "not by a key"
        return str(self.scope or "any")

    def check(self, caller: Caller) -> None:
        """Raise `NotPermitted` where this caller may not do it."""
        if self.needs_sign_in and caller.key_id is not None:
            raise NotPermitted("This can't be done with an API key. Sign in to do it.")
        if self.scope is not None and self.scope not in caller.scopes:
            raise NotPermitted(
                f"This needs the scope {self.scope}, which the API key does not have. "
                "Use one that has it."
            )
        if RANKS[caller.role] < RANKS[self.role]:
            raise NotPermitted(f"This is for users with the role {self.role}.")


PERMISSIONS = (
    Permission(
        action="enqueue jobs",
        scope=Scope.JOBS_WRITE,
        whose=Whose.OWN,
        routes=(
            "POST /generations",
            "POST /chat",
            "POST /embeddings",
            "POST /jobs/bulk",
            "POST /openai/v1/chat/completions",
            "POST /openai/v1/embeddings",
        ),
        commands=("generate", "embed"),
    ),
    Permission(
        action="see jobs",
        scope=Scope.JOBS_READ,
        whose=Whose.OWN,
        routes=(
            "GET /jobs",
            "GET /jobs/{job_id}",
            "GET /jobs/{job_id}/events",
            "GET /operations",
            "GET /operations/{operation_id}",
        ),
        commands=("jobs list", "jobs show", "jobs watch", "jobs wait"),
    ),
    Permission(
        action="cancel and retry jobs",
        scope=Scope.JOBS_WRITE,
        whose=Whose.OWN,
        routes=(
            "POST /jobs/{job_id}/cancel",
            "POST /jobs/{job_id}/retry",
            "POST /operations",
        ),
        commands=("jobs cancel", "jobs retry"),
    ),
    Permission(
        action="ask for responses, cancel and delete them (OpenAI's API)",
        scope=Scope.JOBS_WRITE,
        whose=Whose.ONLY_OWN,
        routes=(
            "POST /openai/v1/responses",
            "POST /openai/v1/responses/{response_id}/cancel",
            "DELETE /openai/v1/responses/{response_id}",
        ),
    ),
    Permission(
        action="see responses (OpenAI's API)",
        scope=Scope.JOBS_READ,
        whose=Whose.ONLY_OWN,
        routes=(
            "GET /openai/v1/responses/{response_id}",
            "GET /openai/v1/responses/{response_id}/input_items",
        ),
    ),
    Permission(
        action="start runs",
        scope=Scope.RUNS_WRITE,
        whose=Whose.OWN,
        routes=("POST /runs/embeddings", "POST /runs/generations"),
        commands=("runs embed", "runs generate", "runs batch"),
    ),
    Permission(
        action="see runs and their results",
        scope=Scope.RUNS_READ,
        whose=Whose.OWN,
        routes=(
            "GET /runs",
            "GET /runs/{run_id}",
            "GET /runs/{run_id}/events",
            "GET /runs/{run_id}/results",
            "GET /runs/{run_id}/results/{format}",
            "GET /runs/{run_id}/failures",
            "GET /runs/{run_id}/failures/{format}",
        ),
        commands=("runs list", "runs show", "runs watch", "runs export"),
    ),
    Permission(
        action="cancel, retry, resume and delete runs",
        scope=Scope.RUNS_WRITE,
        whose=Whose.OWN,
        routes=(
            "POST /runs/{run_id}/cancel",
            "POST /runs/{run_id}/retry",
            "POST /runs/{run_id}/resume",
            "DELETE /runs/{run_id}",
        ),
        commands=("runs cancel", "runs retry", "runs resume", "runs delete"),
    ),
    Permission(
        action="see collections and documents",
        scope=Scope.JOBS_READ,
        whose=Whose.OWN,
        routes=(
            "GET /collections",
            "GET /collections/{collection_id}",
            "GET /collections/{collection_id}/documents",
            "GET /documents/{document_id}",
        ),
        commands=("collections list", "collections show", "documents list", "documents show"),
    ),
    Permission(
        action="make, change and delete collections and documents",
        scope=Scope.JOBS_WRITE,
        whose=Whose.OWN,
        routes=(
            "POST /collections",
            "PATCH /collections/{collection_id}",
            "DELETE /collections/{collection_id}",
            "PUT /collections/{collection_id}/documents",
            "DELETE /documents/{document_id}",
        ),
        commands=("collections create", "collections delete", "documents delete"),
    ),
    Permission(
        action="search",
        scope=Scope.SEARCH,
        whose=Whose.OWN,
        routes=("POST /search",),
        commands=("search",),
    ),
    Permission(
        action="see webhooks and deliveries",
        scope=Scope.WEBHOOKS_READ,
        whose=Whose.OWN,
        routes=(
            "GET /webhooks",
            "GET /webhooks/secret",
            "GET /webhooks/deliveries",
            "GET /webhooks/{webhook_id}",
            "GET /webhooks/{webhook_id}/deliveries",
        ),
        commands=("webhooks list", "webhooks show", "webhooks deliveries"),
    ),
    Permission(
        action="keep webhooks",
        scope=Scope.WEBHOOKS_WRITE,
        whose=Whose.OWN,
        routes=(
            "POST /webhooks",
            "POST /webhooks/secret",
            "PATCH /webhooks/{webhook_id}",
            "DELETE /webhooks/{webhook_id}",
            "POST /webhooks/{webhook_id}/rotate",
            "POST /webhooks/{webhook_id}/test",
            "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/replay",
            "POST /webhooks/deliveries/{delivery_id}/replay",
        ),
        commands=(
            "webhooks create",
            "webhooks change",
            "webhooks enable",
            "webhooks disable",
            "webhooks rotate",
            "webhooks secret",
            "webhooks test",
            "webhooks replay",
            "webhooks delete",
        ),
    ),
    Permission(
        action="see usage and cost",
        scope=Scope.USAGE_READ,
        whose=Whose.OWN,
        routes=("GET /usage", "GET /usage/calls"),
        commands=("usage", "attempts"),
    ),
    Permission(
        action="see files",
        scope=Scope.RUNS_READ,
        whose=Whose.ONLY_OWN,
        routes=(
            "GET /openai/v1/files",
            "GET /openai/v1/files/{file_id}",
            "GET /openai/v1/files/{file_id}/content",
            "GET /openai/v1/files/{file_id}/cost-estimate",
        ),
    ),
    Permission(
        action="upload and delete files",
        scope=Scope.RUNS_WRITE,
        whose=Whose.ONLY_OWN,
        routes=("POST /openai/v1/files", "DELETE /openai/v1/files/{file_id}"),
    ),
    Permission(
        action="make, cancel, retry and delete batches",
        scope=Scope.RUNS_WRITE,
        whose=Whose.ONLY_OWN,
        routes=(
            "POST /openai/v1/batches",
            "POST /openai/v1/batches/{batch_id}/cancel",
            "POST /openai/v1/batches/{batch_id}/retry",
            "POST /anthropic/v1/messages/batches",
            "POST /anthropic/v1/messages/batches/{message_batch_id}/cancel",
            "DELETE /anthropic/v1/messages/batches/{message_batch_id}",
        ),
    ),
    Permission(
        action="see batches",
        scope=Scope.RUNS_READ,
        whose=Whose.ONLY_OWN,
        routes=(
            "GET /openai/v1/batches",
            "GET /openai/v1/batches/{batch_id}",
            "GET /anthropic/v1/messages/batches",
            "GET /anthropic/v1/messages/batches/{message_batch_id}",
            "GET /anthropic/v1/messages/batches/{message_batch_id}/results",
        ),
    ),
    Permission(
        action="ask for messages",
        scope=Scope.JOBS_WRITE,
        whose=Whose.ONLY_OWN,
        routes=("POST /anthropic/v1/messages", "POST /anthropic/v1/messages/count_tokens"),
    ),
    Permission(
        action="see the names of models",
        routes=("GET /openai/v1/models", "GET /openai/v1/models/{model_id:path}"),
    ),
    Permission(
        action="sign in",
        is_public=True,
        routes=("POST /auth/login", "POST /auth/refresh"),
    ),
    Permission(action="see who one is", whose=Whose.OWN, routes=("GET /auth/me",)),
    Permission(
        action="sign out, and change one's password",
        needs_sign_in=True,
        whose=Whose.OWN,
        routes=("POST /auth/logout", "POST /auth/logout-everywhere", "POST /auth/password"),
    ),
    Permission(
        action="see oneself",
        scope=Scope.ADMIN,
        whose=Whose.OWN,
        routes=("GET /users/{user_id}",),
        commands=("users show",),
    ),
    Permission(
        action="change oneself",
        needs_sign_in=True,
        whose=Whose.OWN,
        routes=("PATCH /users/{user_id}",),
    ),
    Permission(
        action="see users",
        role=Role.ADMIN,
        scope=Scope.ADMIN,
        whose=Whose.ALL,
        routes=("GET /users",),
        commands=("users list",),
    ),
    Permission(
        action="manage users",
        role=Role.ADMIN,
        needs_sign_in=True,
        whose=Whose.ALL,
        routes=("POST /users", "POST /users/{user_id}/password"),
        commands=(
            "users create",
            "users disable",
            "users enable",
            "users set-role",
            "users reset-password",
        ),
    ),
    Permission(
        action="manage keys",
        needs_sign_in=True,
        whose=Whose.OWN,
        routes=(
            "GET /keys",
            "POST /keys",
            "POST /keys/{key_id}/rotate",
            "POST /keys/{key_id}/revoke",
        ),
        commands=("keys create", "keys list", "keys rotate", "keys revoke"),
    ),
    Permission(
        action="see budgets",
        scope=Scope.USAGE_READ,
        whose=Whose.OWN,
        routes=("GET /budgets",),
        commands=("budgets show",),
    ),
    Permission(
        action="set what keys may spend",
        needs_sign_in=True,
        whose=Whose.OWN,
        routes=("PUT /budgets/keys/{key_id}",),
    ),
    Permission(
        action="set what users may spend",
        role=Role.ADMIN,
        needs_sign_in=True,
        whose=Whose.ALL,
        routes=("PUT /budgets/users/{user_id}",),
    ),
    Permission(
        action="set what all may spend",
        role=Role.SUPER_ADMIN,
        needs_sign_in=True,
        whose=Whose.ALL,
        routes=("PUT /budgets/deployment",),
        commands=("budgets set",),
    ),
    Permission(
        action="see the deployment at a glance",
        role=Role.ADMIN,
        scope=Scope.ADMIN,
        whose=Whose.ALL,
        routes=("GET /overview",),
    ),
    Permission(
        action="change feature flags",
        role=Role.ADMIN,
        scope=Scope.ADMIN,
        whose=Whose.ALL,
        routes=("GET /flags", "GET /flags/{name}", "PUT /flags/{name}", "DELETE /flags/{name}"),
        commands=("flags list", "flags show", "flags set", "flags unset"),
    ),
    Permission(action="see one's features", routes=("GET /features",)),
    Permission(
        action="send notifications",
        role=Role.ADMIN,
        scope=Scope.ADMIN,
        whose=Whose.ALL,
        routes=("POST /send-notification", "GET /notifications"),
        commands=("notifications send", "notifications list"),
    ),
    Permission(
        action="choose one's notifications",
        needs_sign_in=True,
        whose=Whose.OWN,
        routes=("GET /auth/me/events", "PUT /auth/me/events"),
        commands=("notifications choose",),
    ),
    Permission(
        action="read the audit log",
        role=Role.ADMIN,
        scope=Scope.ADMIN,
        whose=Whose.ALL,
        routes=("GET /audit",),
        commands=("audit",),
    ),
    Permission(
        action="let roles of the database enqueue in SQL",
        role=Role.SUPER_ADMIN,
        whose=Whose.ALL,
        commands=("sql grant", "sql revoke", "sql list"),
    ),
    Permission(
        action="run the deployment",
        role=Role.SUPER_ADMIN,
        whose=Whose.ALL,
        commands=(
            "up",
            "worker",
            "api",
            "flower",
            "simulator",
            "migrate",
            "demo",
            "doctor",
            "chaos",
            "permissions",
            "openapi",
        ),
    ),
)
"""Every action. A route or a command that is in none of them doesn't start."""


def permission_of_route(method: str, path: str) -> Permission:
    """What a route needs. Raises `LookupError` for one that the table does not know."""
    return _find("routes", f"{method} {path}")


def permission_of_command(name: str) -> Permission:
    """What a command does. Raises `LookupError` for one that the table does not know."""
    return _find("commands", name)


def _find(column: str, name: str) -> Permission:
    found = [each for each in PERMISSIONS if name in getattr(each, column)]
    if len(found) != 1:
        raise LookupError(
            f"{name} must be in one row of PERMISSIONS (api/permissions.py); it is in {len(found)}."
        )
    return found[0]
