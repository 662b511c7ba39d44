"""GET /v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from parallel.server.errors import ApiError
from parallel.server.service import Service


def model_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service)]}

    @routes.get("/v1/models/{model:path}")
    async def show_model(model: str) -> dict[str, Any]:
        if model != service.model:
            raise ApiError(
                404,
                f"that model is not served here; this server has '{service.model}'",
                param="model",
                code="model_not_found",
            )
        return _card(service)

    return routes


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "tessera",
        "max_model_len": service.served.room_tokens,
    }
