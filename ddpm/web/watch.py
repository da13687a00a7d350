"""The page of job=watch: curves, previews and states of runs while they train."""

from typing import Any

from ddpm.web import server
from ddpm.web.runs import Gone, Runs


def application(runs: Runs, token: str, host: str = server.HOST) -> Any:
    """The ASGI application."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def page(request: Request) -> Response:
        seen = request.query_params.get("seen", "")
        return Response(runs.page(seen), media_type="application/json")

    def picture(request: Request) -> Response:
        try:
            kind, content = runs.picture(request.path_params["run"], request.path_params["which"])
        except Gone as gone:
            return JSONResponse({"error": str(gone)}, 404)
        # The address holds the step: a preview does not change.
        return Response(content, media_type=kind, headers={"cache-control": "private, max-age=60"})

    async def ask(request: Request) -> Response:
        body = await server.body_of(request)
        words = str(body.get("run", "")), str(body.get("action", ""))
        await run_in_threadpool(runs.ask, *words)
        return JSONResponse({"asked": words[1]})

    routes = [
        Route("/runs", page),
        Route("/picture/{run}/{which}", picture),
        Route("/ask", ask, methods=["POST"]),
    ]
    return server.application("watch", routes, token, host)
