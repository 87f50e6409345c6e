"""The entry point of `promptstack`.

It imports next to nothing: until all is loaded, Ctrl-C ends the process at once, without the
traceback that an exception in the middle of an import leaves.
"""

import os
import signal
import sys
import threading
from importlib import import_module

from promptstack.config.loading import load

INTERRUPTED = 130
AGAIN_SECONDS = 0.05
PROCESSES = {
    "worker": "promptstack.worker.start",
    "api": "promptstack.api.http.__main__",
    "flower": "promptstack.api.flower.__main__",
    "simulator": "promptstack.simulator.__main__",
}
"""The commands that are a process of their own, which needs no command line around it."""


def run() -> None:
    """Run the command line."""
    # Where it is ignored, as under `nohup` and in the background of a script, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        if sys.argv[1:] and sys.argv[1] in PROCESSES:
            become(sys.argv[1], sys.argv[2:])
        import_module("promptstack.api.cli.streams").set_up()
        import_module("promptstack.api.cli.main").build()()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        # Nor must one be seen while the interpreter ends.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def become(name: str, arguments: list[str]) -> None:
    """Be one of `PROCESSES`, and end with it."""
    module = load(PROCESSES[name])
    sys.argv = [name, *arguments]
    raise_on_ctrl_c()
    module.run()
    sys.exit()


def raise_on_ctrl_c() -> None:
    """Let Ctrl-C be an exception from here on, so that what is open gets closed."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again


def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Send Ctrl-C again that came where Python can't raise: as an object was being deleted."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # Not from here, where it would be lost again.
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)
