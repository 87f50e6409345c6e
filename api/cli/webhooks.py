"""`promptstack webhooks ...`: where the ends of jobs and runs are told to."""

from typing import Annotated
from uuid import UUID

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    ID_HELP,
    NO_LIMIT,
    JsonFlag,
    age,
    err,
    out,
    print_items,
    print_json,
    until,
)
from promptstack.repositories.pages import PageQuery
from promptstack.repositories.webhook_models import DeliveryState
from promptstack.services.errors import NotFound
from promptstack.services.webhooks.events import ALL
from promptstack.services.webhooks.views import DeliveryView, WebhookView
from promptstack.tasks.composition import PromptStack

COLUMNS = (
    Column("webhook"),
    Column("url", rank=1, elastic=True),
    Column("events", rank=3, elastic=True),
    Column("user", rank=7),
    Column("state", rank=2),
    Column("failures", rank=5, right=True),
    Column("created", rank=6),
    Column("description", rank=4, elastic=True),
)
LOG_COLUMNS = (
    Column("delivery"),
    Column("event", rank=1),
    Column("object", rank=5),
    Column("state", rank=2),
    Column("attempts", rank=4, right=True),
    Column("last", rank=3, elastic=True),
    Column("age", rank=6, right=True),
)
WebhookId = Annotated[
    str, typer.Argument(metavar="ID", help=f"Id of the webhook, or how it begins; {ID_HELP}.")
]
Email = Annotated[
    str | None, typer.Option("--user", metavar="EMAIL", help="Whose. Unset: the command line's.")
]
Event = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="TYPE", help="An event to tell; repeat it. Unset: all."),
]


def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="A public https:// address.")],
    user: Email = None,
    event: Event = None,
    description: Annotated[str, typer.Option(help="To know it again.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Add an endpoint and show its secret, this once."""
    with connected(start_servers=True) as stack:
        made = stack.webhooks.create(
            url, event or [ALL], description=description, user_id=_user_id(stack, user)
        )
    if as_json:
        print_json({**made.webhook.model_dump(mode="json"), "secret": made.secret})
        return
    out.print(made.secret)
    err.print(f"Webhook {made.webhook.id} signs with this secret, which is not shown again.")


def list_(as_json: JsonFlag = False) -> None:
    """List endpoints, newest first."""
    with connected(start_servers=True) as stack:
        found = stack.webhooks.get_page(None, PageQuery(NO_LIMIT)).rows
    if as_json:
        print_items(one.model_dump(mode="json") for one in found)
    elif found:
        print_table(COLUMNS, list(map(_row, found)))
    else:
        out.print("No webhooks.")


def show(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Show one endpoint."""
    with connected(start_servers=True) as stack:
        found = stack.webhooks.get(stack.webhooks.find(webhook_id))
    shown = found.model_dump(mode="json")
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        said = ", ".join(value) if isinstance(value, list) else value
        out.print(f"{name.replace('_', ' '):<16}{'' if said is None else said}")


def change(
    webhook_id: WebhookId,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A public https:// address.")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="All events to tell; repeat it."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="To know it again.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change the address, the events or the description of an endpoint."""
    with connected(start_servers=True) as stack:
        found = stack.webhooks.update(
            stack.webhooks.find(webhook_id),
            url=url,
            events=event or None,
            description=description,
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(f"Webhook {found.id} is changed.")


def enable(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Send events there again, also those that have waited."""
    _turn(webhook_id, True, as_json)


def disable(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Send nothing there; its events are kept for some days."""
    _turn(webhook_id, False, as_json)


def rotate(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Give an endpoint a new secret; both sign for a day."""
    with connected(start_servers=True) as stack:
        made = stack.webhooks.rotate(stack.webhooks.find(webhook_id))
    if as_json:
        print_json({**made.webhook.model_dump(mode="json"), "secret": made.secret})
        return
    out.print(made.secret)
    ends = made.webhook.previous_until
    err.print(f"The one before signs, too, for {until(ends) if ends else 'no more time'}.")


def delete(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Delete an endpoint; what was not delivered yet is not sent."""
    with connected(start_servers=True) as stack:
        found = stack.webhooks.find(webhook_id)
        stack.webhooks.delete(found)
    if as_json:
        print_json({"id": found, "deleted": True})
    else:
        out.print(f"Webhook {found} is deleted.")


def secret(user: Email = None, as_json: JsonFlag = False) -> None:
    """Make or rotate the secret for addresses that jobs and runs name."""
    with connected(start_servers=True) as stack:
        made = stack.webhooks.rotate_own_secret(_user_id(stack, user))
    if as_json:
        print_json({**made.view.model_dump(mode="json"), "secret": made.secret})
        return
    out.print(made.secret)
    err.print("It signs for the addresses that jobs and runs name, and is not shown again.")


def send_test(webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Send an endpoint the event webhook.test."""
    with connected(start_servers=True) as stack:
        sent = stack.webhook_deliveries.test(stack.webhooks.find(webhook_id))
    if as_json:
        print_json(sent.model_dump(mode="json"))
    else:
        out.print(
            f"Delivery {sent.id} is accepted; a worker sends it. "
            f"See it: promptstack webhooks deliveries {sent.endpoint_id}"
        )


def deliveries(
    webhook_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of which webhook. Unset: of all.")
    ] = None,
    state: Annotated[
        DeliveryState | None,
        typer.Option(metavar="STATE", help=f"Only in this state: {', '.join(DeliveryState)}."),
    ] = None,
    object_id: Annotated[
        UUID | None, typer.Option("--object", metavar="ID", help="Only of this job or run.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List what was sent and what came of it, newest first."""
    with connected(start_servers=True) as stack:
        of = None if webhook_id is None else stack.webhooks.find(webhook_id)
        found = stack.webhook_deliveries.get_page(
            of, PageQuery(limit), state=state, object_id=object_id
        ).rows
    if as_json:
        print_items(one.model_dump(mode="json") for one in found)
    elif found:
        print_table(LOG_COLUMNS, list(map(_log_row, found)))
    else:
        out.print("No deliveries.")


def replay(
    delivery_id: Annotated[
        str, typer.Argument(metavar="ID", help=f"Id of the delivery; {ID_HELP}.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Send an event once more, under the same id."""
    with connected(start_servers=True) as stack:
        sent = stack.webhook_deliveries.replay(stack.webhook_deliveries.find(delivery_id))
    if as_json:
        print_json(sent.model_dump(mode="json"))
    else:
        out.print(f"Delivery {sent.id} is accepted; a worker sends it again.")


def _turn(webhook_id: str, enabled: bool, as_json: bool) -> None:
    with connected(start_servers=True) as stack:
        found = stack.webhooks.update(stack.webhooks.find(webhook_id), enabled=enabled)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(f"Webhook {found.id} is {'enabled' if enabled else 'disabled'}.")


def _row(one: WebhookView) -> list[str]:
    return [
        str(one.id),
        one.url,
        ", ".join(one.events),
        str(one.user_id or ""),
        "enabled" if one.enabled else "disabled",
        str(one.failures),
        f"{one.created_at:%Y-%m-%d}",
        one.description,
    ]


def _log_row(one: DeliveryView) -> list[str]:
    last = one.attempts[-1] if one.attempts else None
    said = "" if last is None else last.error or str(last.status)
    again = f"; again in {until(one.due_at)}" if last and one.due_at else ""
    return [
        str(one.id),
        one.type,
        str(one.object_id),
        one.state,
        str(len(one.attempts)),
        said + again,
        age(one.created_at),
    ]


def _user_id(stack: PromptStack, email: str | None) -> UUID | None:
    if email is None:
        return None
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(email)
        if user is None:
            raise NotFound(f"There is no user {email}.")
        return user.id
