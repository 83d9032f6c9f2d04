"""POST /hilo_token/preview: the plan of a picture as its mask is saved and sliders move, without a run."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from .preview import preview, thumbnail

PATH = "/hilo_token/preview"
MAX_BYTES = 16_384

log = logging.getLogger("hilo_token")

# One thread: a preview never takes more than a core from a run, and its caches need no lock.
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hilo_token_preview")


def add_route() -> None:
    """Add the route to the host's server; where there is none (tests, tools) nothing happens."""
    try:
        from server import PromptServer

        routes = PromptServer.instance.routes
    except (ImportError, AttributeError):
        return
    routes.post(PATH)(answer)


async def answer(request: web.Request) -> web.Response:
    """The plan as JSON, or ``{"error": sentence}``. A mask that is not painted yet, or a picture that is gone, is an
    answer like any other (200: browsers log everything else as a fault of the page); a senseless request is a 400."""
    if not 0 < (request.content_length or 0) <= MAX_BYTES:
        return _error(413, f"the request must be JSON of at most {MAX_BYTES} bytes")
    try:
        asked = json.loads(await request.text())
        image, mask = asked["image"], asked["mask"]
        wanted, use = bool(asked.get("picture")), dict(asked.get("use") or {})
        arguments = (image, mask["image"], mask["channel"], dict(asked["settings"]), wanted, use)
    except (ValueError, KeyError, TypeError):
        return _error(
            400, "the request must be JSON with image, mask {image, channel} and settings {widget name: value}"
        )

    def work() -> tuple[int, dict[str, Any]]:
        if request.transport is None or request.transport.is_closing():
            return 499, {"error": "the page no longer waits for this"}  # a newer slider position is on its way
        try:
            return 200, preview(*arguments)
        except ValueError as error:
            return 200, {"error": str(error), **_picture_of(image, wanted)}
        except Exception as error:
            log.exception("HiLo Token: the live preview failed")
            return 500, {"error": f"the preview failed ({type(error).__name__}); the console says where"}

    status, body = await asyncio.get_running_loop().run_in_executor(_worker, work)
    return web.json_response(body, status=status)


def _picture_of(image: Any, wanted: bool) -> dict[str, str]:
    """The picture, so that the node shows it even where there is no plan, as before the mask is painted."""
    try:
        return {"picture": thumbnail(image)} if wanted else {}
    except ValueError:
        return {}


def _error(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
