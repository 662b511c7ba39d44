"""GET /health, /ready and /metrics: open to whoever watches, with no key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from parallel.server.errors import ApiError
from parallel.server.metrics import CONTENT_TYPE
from parallel.server.service import RETRY_SECONDS, Service, State


def probe_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """All ranks answer."""
        if not await service.healthy():
            raise ApiError(
                503,
                "not every rank answers"
                if service.state is not State.LOADING
                else "the model is loading",
                code="unhealthy",
                retry_seconds=RETRY_SECONDS,
            )
        return {"status": "healthy"}

    @routes.get("/ready")
    async def ready() -> dict[str, str]:
        """New requests are taken."""
        service.check_ready()
        return {"status": "ready"}

    @routes.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    return routes
