"""`promptstack search`: finds passages by meaning."""

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
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Metadata that items must have; may repeat."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the passages nearest in meaning to a question."""
    with connected(start_servers=True) as stack:
        matches = stack.search.search(
            question,
            provider=provider,
            model=model,
            limit=limit,
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
                "run": match.run_id,
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
