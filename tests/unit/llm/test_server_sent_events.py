"""Events are the same however the network cuts them."""

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.llm.server_sent_events import EventReader

LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data: \xc3\xa9", b": comment", b"event: x", b"", b"data", b"data:"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def read(parts: list[bytes]) -> list[str]:
    reader = EventReader()
    return [*(data for part in parts for data in reader.feed(part)), *reader.end()]


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_events_do_not_depend_on_how_they_are_cut(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(line + end for line, end in lines)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    parts = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    assert read(parts) == read([whole])


def test_lines_of_data_are_one_event() -> None:
    assert read([b"data: a\ndata: b\n\n: c\n\ndata: d"]) == ["a\nb", "d"]


def test_a_long_line_in_many_parts_is_read_in_a_moment() -> None:
    """It is looked at once: 16 MB in small parts took minutes, of every job of the worker."""
    reader = EventReader()
    began = time.process_time()
    told = list(reader.feed(b"data: "))
    for _ in range(16_000):
        told += reader.feed(b"x" * 1_000)
    told += reader.feed(b"\n\n")
    assert [len(one) for one in told] == [16_000_000]
    assert time.process_time() - began < 5.0
