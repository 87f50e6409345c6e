"""Standard output and standard error as commands need them."""

import io
import os
import sys
from pathlib import Path
from typing import Any

STDOUT = 1


def set_up() -> None:
    """Let streams take any character, and let their readers go away.

    What is printed was paid for, so it must come out. A character that the stream's encoding lacks
    is printed as an escape.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - kept open
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper):
            stream.flush()
            fresh = io.TextIOWrapper(
                io.BufferedWriter(_Pipe(stream.fileno(), "wb", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering or stream.write_through,
            )
            setattr(sys, name, fresh)


class _Pipe(io.FileIO):
    """A stream whose reader may go away, as `head` does when it has read enough."""

    def write(self, data: Any, /) -> int:
        """Write. Where nobody reads results any more, end the command with success.

        Where nobody reads its messages on standard error, the command goes on.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == STDOUT:
                raise SystemExit(0) from None
            return memoryview(data).nbytes
