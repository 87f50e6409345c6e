"""Drives instructor's batch processor, which asks for objects of a class."""

import sys
import time
from contextlib import redirect_stdout
from typing import Any

from instructor.batch import BatchProcessor
from pydantic import BaseModel
from seen import report

SECONDS = 60


class Colour(BaseModel):
    """What each request asks for."""

    name: str
    shade: int


def batches() -> Any:
    with redirect_stdout(sys.stderr):
        return drive()


def drive() -> Any:
    processor = BatchProcessor("openai/gpt-5-mini", Colour)
    turns = [[{"role": "user", "content": f"Name colour {number}."}] for number in range(3)]
    batch = processor.submit_batch(processor.create_batch_from_messages(turns))
    deadline = time.monotonic() + SECONDS
    while (state := processor.get_batch_status(batch))["status"] != "completed":
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    results = processor.retrieve_results(batch)
    return {
        "state": {name: state[name] for name in ("status", "request_counts")},
        "ids": sorted(one.custom_id for one in results),
        "kinds": sorted({type(one).__name__ for one in results}),
        "names": sorted({type(one.result).__name__ for one in results if one.success}),
        "listed": batch in [one.id for one in processor.list_batches()],
    }


if __name__ == "__main__":
    report("instructor", batches)
