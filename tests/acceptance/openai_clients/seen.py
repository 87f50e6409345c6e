"""Prints what a client saw as JSON: of each part what it returned, or how it failed."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def report(package: str, *parts: Callable[[], Any]) -> None:
    """Run the parts that the command line names, or all, and print what they saw."""
    seen = {"version": version(package)}
    for part in parts:
        if sys.argv[1:] and part.__name__ not in sys.argv[1:]:
            continue
        try:
            seen[part.__name__] = part()
        except Exception as error:  # noqa: BLE001 - a client may fail in any way; the others go on
            seen[part.__name__] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(seen, indent=1) + "\n")
