"""The HTTP server: it counts and bends every provider call, and has doors for the tests."""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from simulator.faults import Fault, FaultScript, parse
from simulator.ledger import Ledger
from simulator.openai import OPENAI
from simulator.traffic import Call, Traffic
from simulator.wire import Answer, Ask, Endpoint, Refusal, Wire

LARGEST_REQUEST = 256 * 1024 * 1024
WIRES = (OPENAI,)


class Simulator:
    """The state of one simulated provider, and its doors."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.ledger = Ledger()
        self.traffic = Traffic()
        self.faults = FaultScript()

    def application(self) -> web.Application:
        """Make the web application: each wire's endpoints and the control doors."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        for wire in WIRES:
            for (method, path), endpoint in wire.endpoints.items():
                app.router.add_route(method, path, ProviderDoor(self, wire, endpoint).handle)
        app.router.add_post("/control/faults", self._add_faults)
        app.router.add_post("/control/reset", self._reset)
        app.router.add_get("/ledger", self._show_ledger)
        app.router.add_get("/stats", self._show_stats)
        return app

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.add([parse(raw) for raw in await request.json()])
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({})

    async def _reset(self, request: web.Request) -> web.Response:
        for part in (self.ledger, self.traffic, self.faults):
            part.reset()
        return web.json_response({})

    async def _show_ledger(self, request: web.Request) -> web.Response:
        return web.json_response({"billed": self.ledger.billed})

    async def _show_stats(self, request: web.Request) -> web.Response:
        return web.json_response({**self.traffic.counts(), "billed": self.ledger.billed.total()})


class ProviderDoor:
    """One endpoint of a provider's wire, behind the fault script and the counters."""

    def __init__(self, simulator: Simulator, wire: Wire, endpoint: Endpoint) -> None:
        self._simulator = simulator
        self._wire = wire
        self._endpoint = endpoint

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one provider call."""
        fault = self._simulator.faults.take()
        with self._simulator.traffic.call(_caller(request)) as call:
            if fault.kind in {"reset", "hang"}:
                await _never_answer(request, fault)
            try:
                answer = self._work(Ask(await _json(request), dict(request.match_info), fault))
            except Refusal as refusal:
                call.status = refusal.status
                return _respond(call, self._wire.refuse(refusal), fault.headers())
            # Paid from here on, whether or not anybody still listens to the answer.
            self._simulator.ledger.bill(answer.billed)
            extra = fault.seconds if fault.kind == "billed_timeout" else 0.0
            await asyncio.sleep(self._simulator.latency + extra)
            if fault.kind == "drip":
                return await _drip(request, answer)
            call.status = 200
            return _respond(call, answer.body, {}, half=fault.kind == "truncated")

    def _work(self, ask: Ask) -> Answer:
        fault = ask.fault
        if fault.kind == "status":
            raise Refusal(fault.status, fault.message, fault.code)
        return self._endpoint(ask)


async def start(port: int, latency: float) -> tuple[web.AppRunner, str]:
    """Listen on the loopback address; return the runner and the URL without a path."""
    runner = web.AppRunner(
        Simulator(latency).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1_024).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def _caller(request: web.Request) -> str:
    return str(request.transport and request.transport.get_extra_info("peername"))


async def _json(request: web.Request) -> Mapping[str, Any]:
    if request.method == "GET":
        return {}
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return body


def _respond(
    call: Call, body: Mapping[str, Any], headers: Mapping[str, str], *, half: bool = False
) -> web.Response:
    raw = json.dumps(body).encode()
    return web.Response(
        status=call.status or 200,
        body=raw[: len(raw) // 2] if half else raw,
        content_type="application/json",
        headers={**headers, "x-request-id": call.id},
    )


async def _never_answer(request: web.Request, fault: Fault) -> None:
    """Wait until the caller has gone, which cancels this; a reset makes it go at once."""
    transport = request.transport
    if fault.kind == "reset" and transport is not None:
        # Lingering for no time makes the close a TCP reset.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await asyncio.Event().wait()


async def _drip(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    for byte in json.dumps(answer.body).encode():
        await response.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return response
