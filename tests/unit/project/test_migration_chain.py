"""The steps of the schema are one chain: each follows the one before it."""

import re

from promptstack.repositories.migrations import STEPS

NAMED = re.compile(r'^(down_)?revision = "?(\w+)"?$', re.MULTILINE)


def test_each_step_follows_the_one_before_it() -> None:
    """Two of one number would both be taken for the newest, and none is taken then."""
    before = "None"
    for path in sorted(STEPS.glob("[0-9]*.py")):
        said = dict(NAMED.findall(path.read_text()))
        assert said == {"": path.name.partition("_")[0], "down_": before}, path.name
        before = said[""]
