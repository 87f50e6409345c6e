"""The HTTP server: it counts each provider call, applies faults, and has a control API."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256

from aiohttp import web

from promptstack.simulator import anthropic, gemini, openai
from promptstack.simulator.anthropic import ANTHROPIC
from promptstack.simulator.anthropic_batches import AnthropicBatches
from promptstack.simulator.batches import Batches
from promptstack.simulator.faults import (
    MID_STREAM,
    NO_FAULT,
    Fault,
    FaultScript,
    parse,
    parse_rates,
)
from promptstack.simulator.files import Files
from promptstack.simulator.gemini import GEMINI
from promptstack.simulator.ledger import Ledger
from promptstack.simulator.limits import Limiter, LimitReached, Limits, parse_limits
from promptstack.simulator.openai import OPENAI
from promptstack.simulator.openai_batches import OpenAIBatches
from promptstack.simulator.receiving import body_of
from promptstack.simulator.sending import drip, never_answer, send_content, send_stream
from promptstack.simulator.traffic import Call, Traffic
from promptstack.simulator.wire import (
    Endpoint,
    ProviderRequest,
    Refusal,
    Stream,
    Wire,
    encode,
    work,
)

CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")
LARGEST_REQUEST = 256 * 1024 * 1024
WIRES = (OPENAI, ANTHROPIC, GEMINI)


@dataclass(frozen=True)
class Latency:
    """The time that an answer takes: `seconds`, more or less by the share `spread`."""

    seconds: float = 0.0
    spread: float = 0.0
    piece_seconds: float = 0.0
    """Between two pieces of a stream."""
    batch_seconds: float = 0.0
    """From the start of a batch to its end."""

    def draw(self) -> float:
        """The latency of one call, in seconds."""
        return self.seconds * random.uniform(1 - self.spread, 1 + self.spread)


class Simulator:
    """The state of one simulated provider."""

    def __init__(self, latency: Latency, limits: Limits) -> None:
        self.latency = latency
        self.limiter = Limiter(limits)
        self.ledger = Ledger()
        self.traffic = Traffic()
        self.faults = FaultScript()
        self.files = Files()
        self.batches = Batches(self.ledger, self.faults, lambda: self.latency.batch_seconds)

    def application(self) -> web.Application:
        """Make the web application: each wire's endpoints and the control API."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        served = [
            *((wire, wire.endpoints) for wire in WIRES),
            (OPENAI, self.files.endpoints()),
            (OPENAI, OpenAIBatches(self.batches, self.files).endpoints()),
            (ANTHROPIC, AnthropicBatches(self.batches).endpoints()),
        ]
        for wire, endpoints in served:
            for (method, path), endpoint in endpoints.items():
                app.router.add_route(method, path, ProviderEndpoint(self, wire, endpoint).handle)
        app.router.add_get("/{version:v1|v1beta}/models", self._list_models)
        app.router.add_post("/control/faults", self._add_faults)
        app.router.add_post("/control/fault-rates", self._set_fault_rates)
        app.router.add_post("/control/limits", self._set_limits)
        app.router.add_post("/control/latency", self._set_latency)
        app.router.add_post("/control/reset", self._reset)
        app.router.add_get("/ledger", self._show_ledger)
        app.router.add_get("/stats", self._show_stats)
        return app

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        # All wires have this path; the headers tell whose client calls.
        wire, models = OPENAI, openai.models
        if "anthropic-version" in request.headers:
            wire, models = ANTHROPIC, anthropic.models
        elif "x-goog-api-key" in request.headers:
            wire, models = GEMINI, gemini.models
        return await ProviderEndpoint(self, wire, models).handle(request)

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.add([parse(raw) for raw in await request.json()])
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({})

    async def _set_fault_rates(self, request: web.Request) -> web.Response:
        try:
            self.faults.set_rates(*parse_rates(await request.json()))
        except (ValueError, AttributeError) as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({})

    async def _set_limits(self, request: web.Request) -> web.Response:
        try:
            self.limiter.set(*parse_limits(await request.json()))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({})

    async def _set_latency(self, request: web.Request) -> web.Response:
        raw = await request.json()
        try:
            self.latency = Latency(**{name: float(value) for name, value in raw.items()})
        except (AttributeError, TypeError, ValueError) as error:
            names = ", ".join(field.name for field in fields(Latency))
            raise web.HTTPBadRequest(text=f"give numbers of {names}") from error
        return web.json_response({})

    async def _reset(self, request: web.Request) -> web.Response:
        for part in (
            *(self.ledger, self.traffic, self.faults, self.limiter),
            *(self.batches, self.files),
        ):
            part.reset()
        return web.json_response({})

    async def _show_ledger(self, request: web.Request) -> web.Response:
        least = request.query.get("times", "1")
        if not least.isdecimal():
            raise web.HTTPBadRequest(text="times must be a whole number")
        billed = {key: times for key, times in self.ledger.billed.items() if times >= int(least)}
        return web.Response(body=encode({"billed": billed}), content_type="application/json")

    async def _show_stats(self, request: web.Request) -> web.Response:
        return web.json_response({**self.traffic.counts(), "billed": self.ledger.billed.total()})


class ProviderEndpoint:
    """One endpoint of a provider's wire, behind the fault script and the counters."""

    def __init__(self, simulator: Simulator, wire: Wire, endpoint: Endpoint) -> None:
        self._simulator = simulator
        self._wire = wire
        self._endpoint = endpoint

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one provider call."""
        simulator = self._simulator
        with simulator.traffic.call(_caller(request)) as call:
            fault = NO_FAULT
            headers: dict[str, str] = {}
            retry_form = "none"
            try:
                body, path = await body_of(request), dict(request.match_info)
                model = str(path.get("model") or body.get("model") or "")
                fault = simulator.faults.take(request.path, model)
                if fault.kind in {"reset", "hang"}:
                    await never_answer(request, fault)
                origin = str(request.url.origin())
                ask = ProviderRequest(body, path, fault, request.query, origin)
                answer = work(self._endpoint, ask)
                if answer.content is not None:
                    call.status = 200
                    headers = {self._wire.request_id_header: call.id}
                    return await send_content(request, answer.content, headers, fault)
                if not answer.billed:
                    return self._respond(call, 200, encode(answer.body), {})
                bucket = simulator.limiter.bucket(_credential(request), model)
                retry_form = bucket.limits.retry_after
                try:
                    if fault.kind == "stray":
                        raise Refusal(429, fault.message, "rate_limit_exceeded")
                    simulator.limiter.admit(bucket, answer.input_tokens, answer.output_tokens)
                finally:
                    headers |= self._wire.limit_headers(simulator.limiter.status(bucket))
            except Refusal as refusal:
                headers |= self._tell_when(refusal, fault, retry_form)
                raw = encode(self._wire.refuse(refusal, call.id))
                return self._respond(call, refusal.status, raw, headers)
            # Paid from here on, whether or not anybody still listens to the answer.
            simulator.ledger.bill(answer.billed)
            simulator.traffic.admit(answer.input_tokens, answer.output_tokens)
            bucket.flying += 1
            extra = fault.seconds if fault.kind == "billed_timeout" else 0.0
            try:
                await asyncio.sleep(simulator.latency.draw() + extra)
            finally:
                bucket.flying -= 1
            if answer.stream is not None:
                return await self._send(request, call, answer.stream, fault, headers)
            raw = encode(answer.body, has_nan=fault.kind == "nan")
            if fault.kind == "drip":
                return await drip(request, raw)
            if fault.kind == "truncated":
                raw = raw[: len(raw) // 2]
            return self._respond(call, 200, raw, headers)

    async def _send(
        self,
        request: web.Request,
        call: Call,
        stream: Stream,
        fault: Fault,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Send a stream. One that breaks off has no status."""
        refusal = Refusal(fault.status, fault.message, fault.code)
        response = await send_stream(
            request,
            stream,
            {**headers, self._wire.request_id_header: call.id},
            fault=fault,
            error=self._wire.refuse(refusal, call.id),
            piece_seconds=self._simulator.latency.piece_seconds,
        )
        if fault.kind not in MID_STREAM:
            call.status = 200
        return response

    def _tell_when(self, refusal: Refusal, fault: Fault, form: str) -> dict[str, str]:
        """Add the time to retry: in headers, or in the body as Gemini does."""
        if not isinstance(refusal, LimitReached):
            return fault.headers()
        if self._wire.tells_when_in_body:
            refusal.wait = None if form == "none" else refusal.wait
            return {}
        return refusal.headers(form)

    def _respond(
        self, call: Call, status: int, raw: bytes, headers: Mapping[str, str]
    ) -> web.Response:
        call.status = status
        return web.Response(
            status=status,
            body=raw,
            content_type="application/json",
            headers={**headers, self._wire.request_id_header: call.id},
        )


async def start(port: int, latency: "Latency", limits: Limits) -> tuple[web.AppRunner, str]:
    """Listen on the loopback address; return the runner and the URL without a path."""
    runner = web.AppRunner(
        Simulator(latency, limits).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1_024).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def _credential(request: web.Request) -> str:
    given = (request.headers.get(name, "") for name in CREDENTIAL_HEADERS)
    return sha256("".join(given).encode()).hexdigest()[:12]


def _caller(request: web.Request) -> str:
    return str(request.transport and request.transport.get_extra_info("peername"))
