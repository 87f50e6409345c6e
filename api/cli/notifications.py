"""`promptstack notifications ...`: mails to users."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, age, out, print_items, print_json, until
from promptstack.repositories.models import JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import NotFound
from promptstack.services.notifications.events import NotifyEvent
from promptstack.services.notifications.service import NotificationView
from promptstack.tasks.composition import PromptStack

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="The e-mail of the user.")]
COLUMNS = (
    Column("notification"),
    Column("to", rank=2, elastic=True),
    Column("subject", rank=5, elastic=True),
    Column("state"),
    Column("accepted", rank=4, right=True),
    Column("uncertain", rank=1, right=True),
    Column("age", rank=3, right=True),
    Column("error", rank=6, elastic=True),
)


def send(
    email: Email,
    subject: Annotated[str, typer.Option(help="One line.")],
    message: Annotated[str, typer.Option(help="Plain text.")],
    key: Annotated[
        str | None, typer.Option(help="Sent again with the same mail, nothing is sent twice.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send a mail to a user."""
    with connected(start_servers=True) as stack:
        notification_id = stack.notifications.send(
            _user_id(stack, email),
            subject,
            message,
            actor=Actor.command_line(),
            idempotency_key=key,
        )
    if as_json:
        print_json({"id": notification_id})
    else:
        out.print(f"Notification {notification_id} is accepted; a worker sends it.")


def list_(
    uncertain: Annotated[
        bool,
        typer.Option("--uncertain", help="Only mails that may have been accepted without a reply."),
    ] = False,
    state: Annotated[
        JobState | None,
        typer.Option(metavar="STATE", help=f"Only in this state: {', '.join(JobState)}."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List mails to users and what became of them, newest first."""
    with connected(start_servers=True) as stack:
        found = stack.notifications.get_many(state=state, is_uncertain=uncertain, limit=limit)
    if as_json:
        print_items(one.model_dump(mode="json") for one in found)
    elif found:
        print_table(COLUMNS, list(map(_row, found)))
    else:
        out.print("No notifications.")


def choose(
    email: Email,
    events: Annotated[
        list[str] | None,
        typer.Argument(metavar="EVENT", help=f"Some of {', '.join(NotifyEvent)}; none: no mail."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose what of their runs a user is told by mail."""
    with connected(start_servers=True) as stack:
        chosen = stack.notifications.choose_events(
            _user_id(stack, email), events or [], actor=Actor.command_line()
        )
    if as_json:
        print_json({"email": email, "events": chosen})
    else:
        out.print(f"Told by mail: {', '.join(chosen) or 'nothing'}.")


def _row(one: NotificationView) -> list[str]:
    is_waiting = one.state is JobState.QUEUED and one.not_before is not None
    again = f"again in {until(one.not_before)}: " if is_waiting and one.not_before else ""
    return [
        str(one.id),
        one.recipient or str(one.user_id),
        one.subject,
        one.state,
        str(one.accepted),
        str(one.uncertain),
        age(one.created_at),
        again + (one.error or ""),
    ]


def _user_id(stack: PromptStack, email: str) -> str:
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(email)
        if user is None:
            raise NotFound(f"There is no user {email}.")
        return str(user.id)
