"""The HTTP application: routes, error shapes and guards put together."""

from __future__ import annotations

from fastapi import FastAPI

import parallel
from parallel.server.chat import chat_routes
from parallel.server.completions import completion_routes
from parallel.server.errors import install_handlers
from parallel.server.guards import ApiKeyGuard, BodyLimit
from parallel.server.listing import model_routes
from parallel.server.probes import probe_routes
from parallel.server.reports import report_routes
from parallel.server.service import Service


def make_app(service: Service) -> FastAPI:
    app = FastAPI(title="Tessera", version=parallel.__version__, docs_url=None, redoc_url=None)
    install_handlers(app)
    for make in (chat_routes, completion_routes, model_routes, probe_routes, report_routes):
        app.include_router(make(service))
    app.add_middleware(BodyLimit, max_bytes=service.settings.max_body_bytes)
    # The last one added comes first: no body is read for those without a key.
    if service.settings.api_key is not None:
        app.add_middleware(ApiKeyGuard, api_key=service.settings.api_key)
    return app
