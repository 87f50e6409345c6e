"""What `promptstack embed` says in the end."""

import pytest

from promptstack.api.cli.jobs.embed import sentence

NONE = dict.fromkeys(("documents", "chunks", "embedded", "reused", "provider_calls", "failed"), 0)


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"failed": 1}, "No document was embedded whole in 1.0 s; 1 document failed."),
        (
            {"documents": 1, "chunks": 2, "reused": 2},
            "1 document, 2 chunks in 1.0 s: all were embedded before; no provider call was made.",
        ),
        (
            {"documents": 1, "chunks": 2, "reused": 2, "failed": 3},
            "1 document, 2 chunks in 1.0 s: all were embedded before; 3 documents failed.",
        ),
        (
            {"documents": 2, "chunks": 3, "embedded": 3, "provider_calls": 2, "failed": 1},
            "2 documents, 3 chunks in 1.0 s: 3 embedded in 2 calls, 0 reused; 1 document failed.",
        ),
    ],
)
def test_what_failed_is_never_called_embedded(summary: dict[str, int], said: str) -> None:
    assert sentence({**NONE, **summary}, 1.0).replace("provider calls", "calls") == said
