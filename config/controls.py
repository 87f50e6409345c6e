"""Characters that do something instead of being shown.

They begin a new line, command a terminal (ANSI escapes) or turn round what stands beside them.
"""

import re

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, *, but: str = "") -> str:
    r"""Show such characters instead of sending them: ESC as `\x1b`; not those of `but`."""

    def shown(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in but else character.encode("unicode_escape").decode()

    return CONTROLS.sub(shown, text)
