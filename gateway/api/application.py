"""The data plane as one ASGI application: path -> surface, errors -> the shape of its protocol, everything counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import time

import msgspec

from gateway.accounting.entry import new_request_id
from gateway.api.auth import KeyRing
from gateway.api.http import AsgiReply, ClientDisconnected, Receive, Scope, Send, respond, respond_error
from gateway.api.models import list_models, show_model
from gateway.api.surfaces import CLIENT_CLOSED, SURFACES, protocol_of, serve_surface
from gateway.errors import DeadlineExceeded, GatewayError, MethodNotAllowed, NotFound, RateLimited, UpstreamFailed
from gateway.pipeline import Pipeline
from gateway.protocols.base import ClientProtocol
from gateway.telemetry import Metrics

_log = logging.getLogger(__name__)

Forward = Callable[[Scope, Receive, Send], Awaitable[None]]
JSON = b"application/json"
EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"


class InternalError(GatewayError):
    """A mistake of ours. The log has it; the client learns no more than that."""

    status = 500


class Application:
    """`forward` carries operators' requests to the control plane; `reload` takes up what was published.

    Requests on the worker's own unix socket (which have no port) may also reach `/internal/...`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        keys: KeyRing,
        metrics: Metrics,
        *,
        forward: Forward,
        reload: Callable[[], None],
    ) -> None:
        self._pipeline = pipeline
        self._keys = keys
        self._metrics = metrics
        self._forward = forward
        self._reload = reload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        protocol = SURFACES.get(path)
        if protocol is not None:
            await self._serve_surface(protocol, scope, receive, send)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await self._guard("models", path, send, self._serve_models(scope, send))
        elif path in ("/metrics", "/admin") or path.startswith("/admin/"):
            await self._forward(scope, receive, send)
        elif path.startswith("/internal/") and _is_internal(scope):
            await self._serve_internal(path, send)
        else:
            await self._guard("other", path, send, self._serve_other(scope, send))

    async def _serve_surface(self, protocol: ClientProtocol, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.request_started()
        status = 500
        reply = AsgiReply(send)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("this path takes POST", headers=[(b"allow", b"POST")])
            headers = dict(scope["headers"])
            status = await serve_surface(protocol, self._pipeline, self._keys, headers, receive, reply)
        except GatewayError as error:
            status = error.status
            await self._refuse(send, error, protocol)
        except ClientDisconnected:
            status = CLIENT_CLOSED
        except Exception as error:
            if reply.has_started:
                raise  # the server cuts the connection: half an answer must not look whole
            await self._fail(send, error, protocol)
        finally:
            self._metrics.request_finished(protocol.surface, status)

    async def _guard(self, surface: str, path: str, send: Send, work: Awaitable[int]) -> None:
        self._metrics.request_started()
        status = 500
        try:
            status = await work
        except GatewayError as error:
            status = error.status
            await self._refuse(send, error, protocol_of(path))
        except Exception as error:  # noqa: BLE001 - likewise
            await self._fail(send, error, protocol_of(path))
        finally:
            self._metrics.request_finished(surface, status)

    async def _fail(self, send: Send, error: Exception, protocol: ClientProtocol) -> None:
        request_id = new_request_id()
        _log.error("request %s could not be served", request_id, exc_info=error)
        headers = [(b"x-hatchway-request-id", request_id.encode())]
        failure = InternalError("the gateway failed", code="internal_error", headers=headers)
        await respond_error(send, failure, protocol)

    async def _refuse(self, send: Send, error: GatewayError, protocol: ClientProtocol) -> None:
        if not isinstance(error, (UpstreamFailed, RateLimited, DeadlineExceeded)):
            self._metrics.refused(error.status, error.code or error.type)
        if all(name != b"x-hatchway-request-id" for name, _ in error.headers):
            error.headers = (*error.headers, (b"x-hatchway-request-id", new_request_id().encode()))
        await respond_error(send, error, protocol)

    async def _serve_models(self, scope: Scope, send: Send) -> int:
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("this path takes GET", headers=[(b"allow", b"GET, HEAD")])
        headers = dict(scope["headers"])
        caller = await self._keys.authenticate(headers)
        anthropics = b"anthropic-version" in headers
        name = scope["path"].removeprefix("/v1/models").strip("/")  # percent-decoded; names may hold slashes
        snapshot = self._pipeline.snapshot
        if name:
            body = show_model(snapshot, caller, name, in_anthropics_shape=anthropics)
        else:
            body = list_models(snapshot, caller, in_anthropics_shape=anthropics)
        await respond(send, 200, body, JSON)
        return 200

    async def _serve_other(self, scope: Scope, send: Send) -> int:
        path, method = scope["path"], scope["method"]
        if path in ("/healthz", "/readyz"):
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed("this path takes GET", headers=[(b"allow", b"GET, HEAD")])
            await respond(send, 200, self._status(), JSON)
            return 200
        raise NotFound(f"unknown route `{method} {path[:200]}`", code="unknown_route")

    async def _serve_internal(self, path: str, send: Send) -> None:
        if path == "/internal/metrics":
            await respond(send, 200, self._metrics.exposition(), EXPOSITION)
        elif path == "/internal/health":
            outlook = self._pipeline.health.outlook(asyncio.get_running_loop().time(), time())
            await respond(send, 200, msgspec.json.encode(outlook.endpoints), JSON)
        elif path == "/internal/learned":
            await respond(send, 200, self._pipeline.health.export(time()), JSON)
        elif path == "/internal/reload":
            self._reload()
            await respond(send, 200, self._status(), JSON)
        else:
            await respond(send, 404, b"{}", JSON)

    def _status(self) -> bytes:
        version = self._pipeline.snapshot.configuration.version
        return msgspec.json.encode({"status": "ok", "policy_version": version})


def _is_internal(scope: Scope) -> bool:
    server = scope.get("server")
    return server is None or server[1] is None
