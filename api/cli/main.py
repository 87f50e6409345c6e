"""The command `promptstack`: the table of its commands."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from promptstack.api.cli.lazy import PLAIN, Command, Group, lazy_commands

# The commands that become another process pass on what they are given, also --help.
BECOMES = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
HELP_WIDTH = 100

KEYS = {
    "create": Command("keys:create", "Make a key and show it, this once."),
    "list": Command("keys:list_", "List keys, oldest first; the keys themselves are not kept."),
    "rotate": Command(
        "keys:rotate",
        "Give a key a new secret; the old one opens for a day more.",
    ),
    "revoke": Command("keys:revoke", "Let a key open nothing from now on."),
}
USERS = {
    "create": Command("users:create", "Add a user, who can then sign in."),
    "list": Command("users:list_", "List users, oldest first."),
    "show": Command("users:show", "Show a user."),
    "disable": Command("users:disable", "Sign a user out, and let nobody in as them."),
    "enable": Command("users:enable", "Let a disabled user in again."),
    "set-role": Command("users:set_role", "Say what a user may do."),
    "reset-password": Command(
        "users:reset_password", "Give a user another password, and sign them out everywhere."
    ),
}
BUDGETS = {
    "show": Command("budgets:show", "Show all caps, and how much of them is used."),
    "set": Command(
        "budgets:set_", "Set what a key, a user or the deployment may spend; it holds at once."
    ),
}
SQL = {
    "grant": Command("sql:grant", "Let a role of the database enqueue jobs of one user in SQL."),
    "revoke": Command("sql:revoke", "Let a role enqueue no more; its jobs go on."),
    "list": Command("sql:list_", "List the roles that may enqueue in SQL, and for whom."),
}
FLAGS = {
    "list": Command("flags:list_", "List feature flags, and whom each is on for."),
    "show": Command("flags:show", "Show one flag."),
    "set": Command("flags:set_", "Turn a feature on or off, for all or for some."),
    "unset": Command("flags:unset", "Let the settings decide again."),
}
JOBS = {
    "list": Command("jobs.commands:list_", "List jobs, newest first."),
    "show": Command("jobs.commands:show", "Show one job with its attempts and its result."),
    "watch": Command("jobs.commands:watch", "Follow jobs until they have ended."),
    "wait": Command("jobs.commands:wait", "Wait quietly until jobs have ended; for scripts."),
    "cancel": Command(
        "jobs.change:cancel", "Cancel queued or running jobs; what they produced stays."
    ),
    "retry": Command(
        "jobs.change:retry", "Queue jobs again that failed: those named, or all that match."
    ),
}
RUNS = {
    "embed": Command("runs.start:embed", "Embed every text of a file or folder."),
    "generate": Command("runs.start:generate", "Generate an answer to every prompt of a file."),
    "batch": Command("runs.batch:batch", "Do the requests of a file of OpenAI's Batch API."),
    "list": Command("runs.commands:list_", "List runs, newest first."),
    "show": Command("runs.commands:show", "Show a run."),
    "watch": Command("runs.commands:watch", "Show a run live until it has ended."),
    "cancel": Command(
        "runs.commands:cancel", "Stop a run; what is produced and under way is kept."
    ),
    "retry": Command("runs.commands:retry", "Try again what failed or was never tried."),
    "resume": Command(
        "runs.commands:resume", "Go on with a run that ended before all its items were tried."
    ),
    "delete": Command(
        "runs.commands:delete", "Delete a run that has ended, and vectors that nobody else uses."
    ),
    "export": Command(
        "runs.commands:export", "Write what a run has produced, and its failures beside it."
    ),
}
COLLECTIONS = {
    "create": Command("collections:create", "Make a collection for documents and runs."),
    "list": Command("collections:list_", "List collections, newest first."),
    "show": Command("collections:show", "Show a collection, and how much is in it."),
    "delete": Command(
        "collections:delete", "Delete a collection with its documents and runs, in the background."
    ),
}
DOCUMENTS = {
    "list": Command("documents:list_", "List the documents of a collection, newest first."),
    "show": Command("documents:show", "Show a document with its text."),
    "delete": Command("documents:delete", "Delete documents, and vectors that nobody else uses."),
}
NOTIFICATIONS = {
    "send": Command("notifications:send", "Send a mail to a user."),
    "list": Command(
        "notifications:list_", "List mails to users and what became of them, newest first."
    ),
    "choose": Command("notifications:choose", "Choose what of their runs a user is told by mail."),
}
WEBHOOKS = {
    "create": Command("webhooks:create", "Add an endpoint and show its secret, this once."),
    "list": Command("webhooks:list_", "List endpoints, newest first."),
    "show": Command("webhooks:show", "Show one endpoint."),
    "change": Command(
        "webhooks:change", "Change the address, the events or the description of an endpoint."
    ),
    "enable": Command("webhooks:enable", "Send events there again, also those that have waited."),
    "disable": Command(
        "webhooks:disable", "Send nothing there; its events are kept for some days."
    ),
    "rotate": Command("webhooks:rotate", "Give an endpoint a new secret; both sign for a day."),
    "secret": Command(
        "webhooks:secret", "Make or rotate the secret for addresses that jobs and runs name."
    ),
    "test": Command("webhooks:send_test", "Send an endpoint the event webhook.test."),
    "deliveries": Command(
        "webhooks:deliveries", "List what was sent and what came of it, newest first."
    ),
    "replay": Command("webhooks:replay", "Send an event once more, under the same id."),
    "delete": Command(
        "webhooks:delete", "Delete an endpoint; what was not delivered yet is not sent."
    ),
}
COMMANDS: dict[str, Command | Group] = {
    "up": Command("serve.commands:up", "Start servers, migrations, workers and the HTTP API."),
    "worker": Command("serve.commands:worker", "Start a worker process.", BECOMES),
    "api": Command("serve.commands:api", "Start the HTTP API.", BECOMES),
    "flower": Command("serve.commands:flower", "Start the Flower dashboard.", BECOMES),
    "simulator": Command(
        "serve.commands:simulator", "Start a stand-in for OpenAI, Anthropic and Gemini.", BECOMES
    ),
    "migrate": Command("serve.commands:migrate", "Bring the database's schema to this version."),
    "demo": Command(
        "serve.demo:demo",
        "Show the main job: embed, crash, search, retry, a run. Leaves nothing behind.",
    ),
    "generate": Command("jobs.generate:generate", "Generate a text from a prompt."),
    "embed": Command("jobs.embed:embed", "Embed documents, for `promptstack search` to find."),
    "search": Command("search:search", "Find passages by their meaning, and by their words."),
    "usage": Command("usage:usage", "Show what was asked of providers, and what it cost."),
    "attempts": Command(
        "jobs.attempts:attempts", "Show provider calls, and what is known of their cost."
    ),
    "audit": Command("audit:audit", "Show who did what, on what, from where and when."),
    "doctor": Command(
        "doctor:doctor", "Check what is configured, what answers and what is missing."
    ),
    "chaos": Command(
        "serve.chaos:chaos", "Send a load, hurt this deployment, and judge every job."
    ),
    "jobs": Group("Look at jobs, follow, cancel and retry them.", JOBS),
    "runs": Group("Batches of embeddings and generations.", RUNS),
    "collections": Group("What documents and runs belong to, and what is searched.", COLLECTIONS),
    "documents": Group("Look at embedded documents, and delete them.", DOCUMENTS),
    "users": Group("Who there is, and what they may do.", USERS),
    "keys": Group("Keys to the HTTP API.", KEYS),
    "sql": Group("Roles of the database that enqueue jobs in SQL.", SQL),
    "budgets": Group("Spend caps of keys, users and the deployment.", BUDGETS),
    "flags": Group("Feature flags: turn features on and off without a restart.", FLAGS),
    "notifications": Group("Mails to users.", NOTIFICATIONS),
    "webhooks": Group("Where the ends of jobs and runs are told to.", WEBHOOKS),
    "openapi": Command("openapi:openapi", "Print the description of the HTTP API (OpenAPI)."),
    "permissions": Command(
        "permissions:permissions",
        "Show who may do what: roles, scopes, routes and commands.",
    ),
}
"""All commands, in the order of `--help`."""


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"commands": lazy_commands(COMMANDS)})


def build() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        cls=Commands,
        help="Durable generation and embedding jobs on Celery, Redis and PostgreSQL.",
        no_args_is_help=True,
        epilog="Begin with `promptstack up`. `promptstack COMMAND --help` names its options.",
        pretty_exceptions_enable=False,  # its tracebacks show local variables: prompts
        context_settings={"max_content_width": HELP_WIDTH},
        **PLAIN,
    )
    app.callback()(_options)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        # It reads mail headers, which nobody else asks for.
        version = import_module("importlib.metadata").version("prompt-stack")
        typer.echo(f"promptstack {version}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Durable generation and embedding jobs on Celery, Redis and PostgreSQL."""
