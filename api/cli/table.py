"""Tables that fit the terminal: the least important columns are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from promptstack.api.cli.terminal import err, out, printable

GAP = 2
ELASTIC_WIDTH = 12
"""The smallest width of a column that may be cut."""


@dataclass(frozen=True)
class Column:
    """A column, and what happens to it in a narrow terminal."""

    name: str
    rank: int = 0
    """The column with the highest rank is left out first; 0 stays."""
    elastic: bool = False
    """Whether long texts in it may be cut."""
    right: bool = False


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, last_is_sum: bool = False
) -> None:
    """Print rows under the columns' names, one line each.

    A pipe gets all columns. A terminal gets those that fit, and on standard error the names of the
    others.
    """
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    needs = [
        max(cell_len(text) for text in (column.name, *(row[at] for row in cells)))
        for at, column in enumerate(columns)
    ]
    shown, spare = _chosen(columns, needs)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
    for at in shown:
        column, width = columns[at], needs[at]
        if column.elastic:
            cut = min(width, _least(column, width) + spare)
            spare -= cut - _least(column, width)
            width = cut
        table.add_column(
            column.name,
            width=width,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
        )
    for number, row in enumerate(cells, start=1):
        style = "bold" if last_is_sum and number == len(cells) else None
        table.add_row(*(Text(row[at]) for at in shown), style=style)
    out.print(table)
    left_out = [column.name for at, column in enumerate(columns) if at not in shown]
    if left_out:
        said = f"Left out for want of room (--json has all): {', '.join(left_out)}."
        err.print(said, style="dim", soft_wrap=False)


def _chosen(columns: Sequence[Column], needs: Sequence[int]) -> tuple[list[int], int]:
    """The positions of the columns that fit, and the room left for the elastic ones."""
    room = out.width + GAP
    shown = []
    for at in sorted(range(len(columns)), key=lambda at: columns[at].rank):
        least = _least(columns[at], needs[at]) + GAP
        if least <= room or columns[at].rank == 0:
            shown.append(at)
            room -= least
    return sorted(shown), max(0, room)


def _least(column: Column, need: int) -> int:
    return min(need, ELASTIC_WIDTH) if column.elastic else need
