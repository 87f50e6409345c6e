"""Control characters: they break lines, command a terminal (ANSI escapes) or reverse text."""

import re

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, *, but: str = "") -> str:
    r"""Return the text with control characters escaped, ESC as `\x1b`; except those in `but`."""

    def shown(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in but else character.encode("unicode_escape").decode()

    return CONTROLS.sub(shown, text)
