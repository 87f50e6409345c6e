"""Steps of the schema are taken while others work."""

import re

import pytest

from promptstack.repositories.migrations import STEPS

CHANGES = re.compile(
    r"""ALTER\ TABLE\ (jobs|runs|attempts|users)\b(?!\ VALIDATE)
    | op\.(add|drop)_column\(\s*"(jobs|runs|attempts|users)"
    | op\.(create|drop)_constraint\([^)]*"(jobs|runs|attempts|users)"
    | for\ table\ in\ \("jobs",""",
    re.VERBOSE,
)
FIRST = "0032"
"""The steps before it were released."""


def test_a_step_that_changes_a_large_table_waits_for_no_long_transaction(
    subtests: pytest.Subtests,
) -> None:
    """All who use the table would wait behind it."""
    changing = 0
    for path in sorted(STEPS.glob("0*.py")):
        written = path.read_text()
        upgrade = written.partition("def upgrade()")[2].partition("def downgrade()")[0]
        if path.name < FIRST or CHANGES.search(upgrade) is None:
            continue
        changing += 1
        with subtests.test(path.name):
            assert "SET LOCAL lock_timeout" in upgrade
    assert changing >= 6
