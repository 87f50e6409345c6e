"""Imports what a process consists of, at its start."""

import gc
import sys
from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """Import a module and all that it needs, without a search for garbage meanwhile.

    What is imported stays. Looking through it again and again takes a quarter of the time of a
    worker's imports. Frozen, it is not looked through later either.
    """
    if name in sys.modules:
        return sys.modules[name]
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if collects:
            gc.enable()
