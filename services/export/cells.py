"""Makes texts safe for CSV cells: spreadsheets run formulas, terminals obey control codes."""

import re

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""With these a spreadsheet begins a formula, which may fetch an address or start a program; the
last four are their wide forms."""
GUARD = "'"
"""A spreadsheet takes what follows for a text."""
_CONTROLS = re.compile(r"\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def text_cell(text: str, *, guarded: bool) -> str:
    r"""Return a text for a cell: control characters as `\x1b`, formulas disarmed if `guarded`.

    Tabs and ends of lines stay. JSON Lines and Parquet keep every character.
    """
    guard = GUARD if guarded and text[:1] in FORMULA_STARTS else ""
    return guard + _CONTROLS.sub(_as_hex, text)


def json_cell(text: str) -> str:
    """Return JSON for a cell: the same JSON, without the control characters that it may have.

    It begins as a formula does where it is a negative number, and then it is none.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _as_hex(found: re.Match[str]) -> str:
    control = found.group()
    return control if control == "\r\n" else f"\\x{ord(control):02x}"
