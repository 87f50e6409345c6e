"""`promptstack collections ...`: what documents and runs belong to, and what is searched."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    JsonFlag,
    age,
    out,
    plural,
    print_fields,
    print_items,
    print_json,
)
from promptstack.repositories.pages import PageQuery
from promptstack.services.audit.actor import Actor
from promptstack.services.collections.service import (
    DEFAULT_LANGUAGE,
    CollectionDetail,
    CollectionView,
)

CollectionArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The collection's name, or its id.")
]
COLUMNS = (
    Column("collection"),
    Column("name", elastic=True),
    Column("language", rank=2),
    Column("state", rank=1),
    Column("age", rank=3, right=True),
)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    description: Annotated[str, typer.Option(help="For people.")] = "",
    language: Annotated[
        str, typer.Option(help="Of its texts; `simple` takes words as they are.")
    ] = DEFAULT_LANGUAGE,
    as_json: JsonFlag = False,
) -> None:
    """Make a collection for documents and runs."""
    with connected(start_servers=True) as stack:
        made = stack.collections.create(name, description=description, language=language)
    if as_json:
        print_json(made.model_dump())
    else:
        out.print(f"Made collection {made.id}.")


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List collections, newest first."""
    with connected(start_servers=True) as stack:
        found = stack.collections.get_page(PageQuery(limit)).rows
    if as_json:
        print_items(one.model_dump() for one in found)
    else:
        print_table(COLUMNS, list(map(_row, found)))


def show(collection: CollectionArgument, as_json: JsonFlag = False) -> None:
    """Show a collection, and how much is in it."""
    with connected(start_servers=True) as stack:
        found = stack.collections.get(collection)
    _print(found, as_json=as_json)


def delete(collection: CollectionArgument, as_json: JsonFlag = False) -> None:
    """Delete a collection with its documents and runs, in the background."""
    with connected(start_servers=True) as stack:
        found = stack.collections.delete(collection, actor=Actor.command_line())
    if as_json:
        print_json(found.model_dump())
    else:
        documents, runs = plural(found.documents, "document"), plural(found.runs, "run")
        out.print(
            f"Workers delete {documents} and {runs}; `promptstack collections show {found.id}` "
            "says how far they are."
        )


def _print(found: CollectionDetail, *, as_json: bool) -> None:
    if as_json:
        print_json(found.model_dump())
    else:
        print_fields(
            {
                "id": found.id,
                "name": found.name,
                "description": found.description,
                "language": found.language,
                "state": _state(found),
                "documents": f"{found.documents:,}",
                "runs": f"{found.runs:,}",
            }
        )


def _row(one: CollectionView) -> list[str]:
    return [str(one.id), one.name, one.language, _state(one), age(one.created_at)]


def _state(one: CollectionView) -> str:
    return "there" if one.deleted_at is None else "being deleted"
