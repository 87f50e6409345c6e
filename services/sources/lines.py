"""Cuts a stream of bytes into lines, none of them longer than a bound."""

from collections.abc import Iterable, Iterator


def physical_lines(blocks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield each line's number, from 1, and the line without its `\n`.

    A line of more than `limit` bytes is yielded as None and not kept in memory: it may be the rest
    of a file that is no text at all.
    """
    number = 0
    held = bytearray()  # not a list: a pipe may give a byte at a time
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        size += len(first)
        if size > limit:
            held.clear()
        else:
            held += first
        if not others:
            continue
        number += 1
        yield number, bytes(held) if size <= limit else None
        last = others.pop()
        if len(block) <= limit:
            yield from enumerate(others, number + 1)
        else:
            for at, line in enumerate(others, number + 1):
                yield at, line if len(line) <= limit else None
        number += len(others)
        size = len(last)
        held = bytearray(last if size <= limit else b"")
    if size:
        yield number + 1, bytes(held) if size <= limit else None
