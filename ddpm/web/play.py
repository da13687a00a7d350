"""The page of job=play: draw, inpaint and interpolate with a trained network."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddpm.web import server
from ddpm.web.studio import Event, Studio


def application(studio: Studio, token: str, host: str = server.HOST) -> Any:
    """The ASGI application. Pictures arrive as lines of JSON, one for each step that is shown."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def model(request: Request) -> Response:
        return JSONResponse(studio.model())

    def route(path: str, draw: Callable[[Mapping[str, Any]], Iterator[Event]]) -> Route:
        async def answer(request: Request) -> Response:
            events = await run_in_threadpool(draw, await server.body_of(request))
            lines = (json.dumps(event) + "\n" for event in events)
            return StreamingResponse(lines, media_type="application/x-ndjson")

        return Route(path, answer, methods=["POST"])

    routes = [
        Route("/model", model),
        route("/draw", studio.draw),
        route("/inpaint", studio.inpaint),
        route("/interpolate", studio.interpolate),
    ]
    return server.application("play", routes, token, host)
