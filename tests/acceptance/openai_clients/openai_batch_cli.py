"""Drives the command line of openai-batch, which takes a file of requests through a batch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
from seen import report

SECONDS = 60
CHAT = "/v1/chat/completions"


def run(folder: Path, *arguments: str) -> str:
    """What the command says."""
    command = [sys.executable, "-m", "openai_batch.run", *arguments]
    command += ["--base-url", os.environ["OPENAI_BASE_URL"]]
    command += ["--api-key", os.environ["OPENAI_API_KEY"], "-o", "out.jsonl", "-e", "err.jsonl"]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return ran.stdout


def drive(folder: Path) -> Any:
    rows = []
    for number in range(3):
        body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": f"Say {number}."}]}
        rows.append({"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body})
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    batch = run(folder, "in.jsonl", "--create").split("Created ")[1].split(".")[0]
    # It looks once a minute; somebody else looks until it is worth it.
    deadline = time.monotonic() + SECONDS
    with openai.OpenAI() as client:
        while client.batches.retrieve(batch).status != "completed":
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    run(folder, "--resume", batch)
    out = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    return {
        "ids": sorted(row["custom_id"] for row in out),
        "statuses": sorted({row["response"]["status_code"] for row in out}),
        "errors": (folder / "err.jsonl").exists() and (folder / "err.jsonl").read_text(),
    }


def batches() -> Any:
    with TemporaryDirectory() as name:
        return drive(Path(name))


if __name__ == "__main__":
    report("openai-batch", batches)
