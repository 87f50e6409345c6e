"""Sends answers, and breaks them off where a fault says so."""

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import replace

from aiohttp import web

from promptstack.simulator.faults import MID_STREAM, Fault
from promptstack.simulator.wire import Content, Stream


async def never_answer(request: web.Request, fault: Fault) -> None:
    """Wait until the caller has gone, which cancels this; a reset makes it go at once."""
    transport = request.transport
    if fault.kind == "reset" and transport is not None:
        # Lingering for no time makes the close a TCP reset.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await asyncio.Event().wait()


async def drip(
    request: web.Request, raw: bytes, kind: str = "application/json"
) -> web.StreamResponse:
    """Send an answer a byte at a time."""
    response = web.StreamResponse(headers={"content-type": kind})
    await response.prepare(request)
    for byte in raw:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return response


async def send_stream(
    request: web.Request,
    stream: Stream,
    headers: Mapping[str, str],
    *,
    fault: Fault,
    error: Mapping[str, object],
    piece_seconds: float,
) -> web.StreamResponse:
    """Send a stream, up to the fault in its middle; `error` is the body of its refusal."""
    kind = "text/event-stream"
    if fault.kind == "drip":
        return await drip(request, b"".join(stream.events), kind)
    response = web.StreamResponse(headers={**headers, "content-type": kind})
    await response.prepare(request)
    events = stream.events
    if fault.kind in MID_STREAM:
        events = events[: len(events) // 2]
    elif fault.kind == "truncated":
        events = [b"".join(events)[: sum(map(len, events)) // 2]]
    for event in events:
        await response.write(event)
        await asyncio.sleep(piece_seconds)
    if fault.kind in {"broken", "stall", "open_end"}:
        await never_answer(request, replace(fault, kind="reset" if fault.kind == "broken" else ""))
    if fault.kind == "error_event":
        await response.write(stream.refuse(error))
    return response


async def send_content(
    request: web.Request, content: Content, headers: Mapping[str, str], fault: Fault
) -> web.StreamResponse:
    """Send a file, up to its half where a fault breaks it off."""
    response = web.StreamResponse(
        headers={
            **headers,
            "content-type": "application/octet-stream",
            "content-disposition": f'attachment; filename="{content.filename}"',
        }
    )
    left = content.size // 2 if fault.kind in {"truncated", "broken"} else content.size
    response.content_length = content.size if fault.kind == "broken" else left
    await response.prepare(request)
    for block in content.blocks:
        await response.write(block[:left])
        left -= len(block[:left])
        if not left:
            break
    if fault.kind == "broken":
        await never_answer(request, replace(fault, kind="reset"))
    return response
