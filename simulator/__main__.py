"""`python -m promptstack.simulator`: serve until SIGTERM."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence

from promptstack.simulator.limits import Limits
from promptstack.simulator.server import Latency, start


async def serve(port: int, latency: Latency, limits: Limits) -> None:
    """Serve on the loopback address, and say where in one line of JSON on stdout."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        runner, url = await start(port, latency, limits)
    except OSError as error:
        sys.exit(f"The simulator can't listen on port {port}: {error.strerror}. Name another one.")
    sys.stdout.write(json.dumps({"url": f"{url}/v1"}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="promptstack simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--latency-spread", type=float, default=0.0, help="share of it, 0 to 1")
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="until a batch has ended")
    parser.add_argument("--rpm", type=float, help="requests a minute; default: no limit")
    parser.add_argument("--tpm", type=float, help="tokens a minute, input and output")
    parser.add_argument("--in-flight", type=int, help="calls at once")
    parser.add_argument("--burst", type=float, default=60.0, help="seconds a bucket holds")
    parser.add_argument(
        "--retry-after", choices=["seconds", "milliseconds", "none"], default="seconds"
    )
    given = parser.parse_args(arguments)
    limits = Limits(
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        in_flight=given.in_flight,
        burst_seconds=given.burst,
        retry_after=given.retry_after,
    )
    latency = Latency(given.latency, given.latency_spread, batch_seconds=given.batch_seconds)
    asyncio.run(serve(given.port, latency, limits))


def run() -> None:
    """Serve as the command line says."""
    main()


if __name__ == "__main__":
    run()
