"""`python -m simulator`: serve until SIGTERM."""

import argparse
import asyncio
import json
import signal
import sys

from simulator.server import start


async def serve(port: int, latency: float) -> None:
    """Serve on the loopback address, and say where in one line of JSON on stdout."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner, url = await start(port, latency)
    sys.stdout.write(json.dumps({"url": f"{url}/v1"}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.latency))


if __name__ == "__main__":
    main()
