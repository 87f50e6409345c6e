"""`promptstack documents ...`: look at embedded documents, and delete them."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import named_value
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    ID_HELP,
    JsonFlag,
    age,
    out,
    plural,
    print_fields,
    print_items,
    print_json,
    printable,
)
from promptstack.repositories.pages import PageQuery
from promptstack.services.audit.actor import Actor
from promptstack.services.collections.lookup import DEFAULT_NAME
from promptstack.services.documents.service import DocumentView

Id = Annotated[str, typer.Argument(metavar="ID", help=f"Id of the document; {ID_HELP}.")]
COLUMNS = (
    Column("document"),
    Column("source", elastic=True),
    Column("bytes", rank=2, right=True),
    Column("chunks", rank=1, right=True),
    Column("age", rank=3, right=True),
)


def list_(
    collection: Annotated[
        str, typer.Option(metavar="NAME", help="Of which collection; a name or an id.")
    ] = DEFAULT_NAME,
    source: Annotated[str | None, typer.Option(help="The document of this source.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Metadata that they must have; may repeat."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the documents of a collection, newest first."""
    with connected(start_servers=True) as stack:
        found = stack.documents.get_page(
            collection,
            PageQuery(limit),
            source=source,
            where=dict(named_value(one, "--where") for one in where or []),
        ).rows
    if as_json:
        print_items(one.model_dump() for one in found)
    else:
        print_table(COLUMNS, list(map(_row, found)))


def show(document: Id, as_json: JsonFlag = False) -> None:
    """Show a document with its text."""
    with connected(start_servers=True) as stack:
        found = stack.documents.get(stack.documents.find(document))
    if as_json:
        print_json(found.model_dump())
        return
    print_fields(
        {
            "id": found.id,
            "collection": found.collection_id,
            "source": found.source,
            "metadata": found.metadata or "",
            "bytes": f"{found.bytes:,}",
            "chunks": f"{found.chunks:,}",
        }
    )
    out.print(printable(found.text), markup=False)


def delete(
    documents: Annotated[
        list[str], typer.Argument(metavar="ID", help=f"Ids of documents; of each, {ID_HELP}.")
    ],
) -> None:
    """Delete documents, and vectors that nobody else uses."""
    with connected(start_servers=True) as stack:
        for document in [stack.documents.find(given) for given in documents]:
            stack.documents.delete(document, actor=Actor.command_line())
    out.print(f"Deleted {plural(len(documents), 'document')}.")


def _row(one: DocumentView) -> list[str]:
    return [str(one.id), one.source, f"{one.bytes:,}", f"{one.chunks:,}", age(one.created_at)]
