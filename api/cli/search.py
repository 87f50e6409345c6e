"""`promptstack search`: finds passages by meaning, and by words."""

from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import named_value
from promptstack.api.cli.terminal import JsonFlag, err, out, print_indented, print_items, printable
from promptstack.repositories.content.passages import Match

SHORT_PASSAGE = 160


def search(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What to look for, in plain words.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many passages.")] = 5,
    provider: Annotated[str | None, typer.Option(help="Provider of the embeddings.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the embeddings.")] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Where: `default`; or names, ids or `all`; may repeat."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Only among the items of this run.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Only what has this source.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Metadata that it must have; may repeat."),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Let the question's words count, too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find passages by their meaning, and by their words."""
    with connected(start_servers=True) as stack:
        matches = stack.search.search(
            question,
            provider=provider,
            model=model,
            limit=limit,
            hybrid=hybrid,
            collections=collection or None,
            run_id=None if run is None else stack.runs.find(run),
            source=source,
            where=dict(named_value(one, "--where") for one in where or []),
        )
    if as_json:
        print_items(
            {
                "source": match.source,
                "score": round(match.score, 4),
                "position": match.position,
                "start": match.start,
                "text": match.text,
                "highlights": match.highlights,
                "document": match.document_id,
                "run": match.run_id,
                "collection": match.collection_id,
                "metadata": match.attributes,
            }
            for match in matches
        )
    elif matches:
        print_matches(matches)
    else:
        err.print("Nothing found.")


def print_matches(matches: list[Match]) -> None:
    """Print passages, each with its score and source."""
    for match in matches:
        passage = printable(" ".join(match.text.split()))
        shown = passage[:SHORT_PASSAGE] + ("..." if len(passage) > SHORT_PASSAGE else "")
        out.print(f"  {match.score:.3f}  {printable(match.source)}", style="bold", markup=False)
        print_indented(shown, 9)
