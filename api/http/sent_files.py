"""Sends files whole, or the part of them that a request asks for (RFC 9110, 13 and 14)."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request, Response

from promptstack.api.http.transfers import Downloads, SentInBlocks, make_all
from promptstack.services.files.contents import Content

ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


class _AskedPart:
    """What the headers of a request ask for of a file."""

    def __init__(
        self,
        range_: Annotated[
            str | None, Header(alias="Range", description="Such as `bytes=1000-`.")
        ] = None,
        if_range: Annotated[
            str | None, Header(description="An ETag: the whole file if it is another.")
        ] = None,
        if_none_match: Annotated[
            str | None, Header(description="An ETag: 304 if it is the same.")
        ] = None,
    ) -> None:
        self._range = range_
        self._if_range = if_range
        self._if_none_match = if_none_match

    async def answer(
        self,
        request: Request,
        content: Content,
        held: ExitStack,
        headers: Mapping[str, str],
        media_type: str,
    ) -> Response:
        """Send it, and close what is `held` when all is sent. Raises 416."""
        downloads: Downloads = request.app.state.downloads
        headers = {
            **headers,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-cache",
        }
        status, start, stop = 200, 0, None
        if content.tag is not None:
            etag = f'"{content.tag}"'
            headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
            if _names(self._if_none_match, etag):
                return Response(status_code=304, headers=headers)
            asked = _range(self._range)
            if asked is not None and self._if_range in {None, etag}:
                if content.length is None:
                    # Others have their turn after each block that it takes.
                    await make_all(content.measuring(), downloads.makers, request)
                length = content.length or 0
                status, (start, stop) = 206, _part(*asked, length)
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
        end = content.length if stop is None else stop
        if end is not None:
            headers["Content-Length"] = str(end - start)
        return SentInBlocks(
            content.blocks(start, stop),
            downloads.makers,
            held.pop_all(),
            status_code=status,
            headers=headers,
            media_type=media_type,
        )


AskedPart = Annotated[_AskedPart, Depends()]


def _names(tags: str | None, etag: str) -> bool:
    """Whether a list of tags, or `*`, has this one."""
    given = [tag.strip().removeprefix("W/") for tag in (tags or "").split(",")]
    return etag in given or given == ["*"]


def _range(header: str | None) -> tuple[int | None, int | None] | None:
    """Read which one range is asked for. Any other header is as none (RFC 9110, 14.2)."""
    found = ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = (int(part) if part else None for part in found.group(1, 2))
    is_backwards = first is not None and last is not None and last < first
    return None if is_backwards else (first, last)


def _part(first: int | None, last: int | None, length: int) -> tuple[int, int]:
    """Return where a part begins and ends. Raises 416 for one that isn't there."""
    if first is None:
        start, stop = max(0, length - (last or 0)), length
    else:
        start, stop = first, length if last is None else min(length, last + 1)
    if start >= stop:
        raise HTTPException(
            416,
            f"The file has {length:,} bytes, and none of those that were asked for.",
            headers={"Content-Range": f"bytes */{length}"},
        )
    return start, stop
