"""How many requests a second the simulator serves on one core. `python -m benchmarks.simulator`."""

import asyncio
import json
import sys
import time

import psutil

from promptstack.simulator.process import SimulatorProcess

CONNECTIONS = 32
SECONDS = 5.0
BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Why?"}]},
    "/v1beta/models/m:batchEmbedContents": {
        "requests": [{"content": {"parts": [{"text": "Why?"}]}}]
    },
    "/v1/embeddings": {"model": "m", "input": "Why?", "encoding_format": "base64"},
}


async def load(port: int, path: str, body: bytes) -> int:
    """Ask over connections that stay open, with as little work of our own as can be; how often."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    request, until, served = head.encode() + body, time.monotonic() + SECONDS, 0

    async def ask() -> None:
        nonlocal served
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = answer.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            await reader.readexactly(int(length))
            served += 1
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return served


def main() -> None:
    """Print a line for each kind of request."""
    for path, body in BODIES.items():
        with SimulatorProcess() as simulator:
            simulator.set_limits(requests_per_minute=10**9, tokens_per_minute=10**12)
            process = psutil.Process(simulator.pid)
            port = int(simulator.origin.rsplit(":", 1)[1])
            before = sum(process.cpu_times()[:2])
            served = asyncio.run(load(port, path, json.dumps(body).encode()))
            spent = sum(process.cpu_times()[:2]) - before
            if set(simulator.stats()["by_status"]) != {"200"}:
                sys.exit("The simulator refused some of it.")
        sys.stdout.write(
            f"{path:24} {served / SECONDS:6.0f} requests/s, {spent / served * 1e3:.2f} ms of CPU "
            f"each: {served / spent:.0f} a second on one core\n"
        )


if __name__ == "__main__":
    main()
