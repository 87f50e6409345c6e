"""`promptstack sql ...`: roles of the database that may enqueue jobs in SQL."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import JsonFlag, age, out, print_items, print_json
from promptstack.services.access.sql_roles import SqlRoleView
from promptstack.services.audit.actor import Actor

COLUMNS = (Column("role"), Column("enqueues for", elastic=True), Column("granted", rank=1))

Role = Annotated[str, typer.Argument(metavar="ROLE", help="A role of the database.")]


def grant(
    role: Role,
    user: Annotated[str, typer.Option(help="Whose jobs it enqueues: the e-mail, or the id.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a role of the database enqueue jobs of one user in SQL."""
    with connected(start_servers=True) as stack:
        bound = stack.sql_roles.grant(role, stack.users.find(user), by=Actor.command_line())
    if as_json:
        print_json(bound.model_dump(mode="json"))
    else:
        out.print(f"The role {bound.role} may enqueue jobs of {bound.email}.", markup=False)


def revoke(role: Role) -> None:
    """Let a role enqueue no more; its jobs go on."""
    with connected(start_servers=True) as stack:
        stack.sql_roles.revoke(role, by=Actor.command_line())
    out.print(f"The role {role} may enqueue no more.", markup=False)


def list_(as_json: JsonFlag = False) -> None:
    """List the roles that may enqueue in SQL, and for whom."""
    with connected(start_servers=True) as stack:
        roles = stack.sql_roles.get_all()
    if as_json:
        print_items(role.model_dump(mode="json") for role in roles)
    elif roles:
        print_table(COLUMNS, list(map(_row, roles)))
    else:
        out.print("No roles.")


def _row(role: SqlRoleView) -> list[str]:
    return [role.role, role.email, age(role.created_at)]
