"""The data plane as one application: path -> surface, errors -> the shape of its protocol, everything counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import time
from typing import Any

import msgspec

from gateway.api.auth import KeyRing
from gateway.api.http import HttpReply, Request, respond, respond_error
from gateway.api.models import list_models, show_model
from gateway.api.surfaces import SURFACES, protocol_of, serve_surface
from gateway.errors import DeadlineExceeded, GatewayError, MethodNotAllowed, NotFound, RateLimited, UpstreamFailed
from gateway.exchange import CLIENT_CLOSED
from gateway.ledger.identifiers import new_request_id
from gateway.pipeline import Pipeline
from gateway.protocols.base import ClientProtocol
from gateway.spans import record_refusal
from gateway.telemetry import Metrics

_log = logging.getLogger(__name__)

Work = Coroutine[Any, Any, None]
Forward = Callable[[Request, HttpReply], Work]
JSON = b"application/json"
EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
MESSAGE_PACK = b"application/x-msgpack"


class InternalError(GatewayError):
    """A mistake of ours. The log has it; the client learns no more than that."""

    status = 500


class Application:
    """`forward` carries operators' requests to the control plane; `reload` takes up what was published.

    Requests on the worker's own unix socket may also reach `/internal/...`.
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

    def __call__(self, request: Request, reply: HttpReply) -> Work | None:
        """Answers at once what waits for nothing; otherwise returns what a task is to run."""
        path = request.path
        protocol = SURFACES.get(path)
        if protocol is not None:
            return self._serve_surface(protocol, request, reply)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return self._serve_models(request, reply)
        if path in ("/metrics", "/admin") or path.startswith("/admin/"):
            return self._forward(request, reply)
        if path.startswith("/internal/") and request.is_internal:
            self._serve_internal(path, reply)
        else:
            self._serve_other(request, reply)
        return None

    async def _serve_surface(self, protocol: ClientProtocol, request: Request, reply: HttpReply) -> None:
        self._metrics.request_started()
        status = 500
        try:
            if request.method != "POST":
                raise MethodNotAllowed("this path takes POST", headers=[(b"allow", b"POST")])
            status = await serve_surface(protocol, self._pipeline, self._keys, request, reply)
        except GatewayError as error:
            status = error.status
            request_id = self._refuse(reply, error, protocol)
            if request_id is not None and request.method == "POST":
                tracer, surface = self._pipeline.tracer, protocol.surface
                record_refusal(tracer, request.headers, surface, error, request_id, request.received_at)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED if reply.is_gone else 500
            raise
        except Exception as error:
            if reply.has_started:
                raise  # the server cuts the connection: half an answer must not look whole
            self._fail(reply, error, protocol)
        finally:
            self._metrics.request_finished(protocol.surface, status)

    async def _serve_models(self, request: Request, reply: HttpReply) -> None:
        self._metrics.request_started()
        status = 500
        try:
            body = await self._models(request)
            respond(reply, 200, body, JSON)
            status = 200
        except GatewayError as error:
            status = error.status
            self._refuse(reply, error, protocol_of(request.path))
        except Exception as error:  # noqa: BLE001 - likewise
            self._fail(reply, error, protocol_of(request.path))
        finally:
            self._metrics.request_finished("models", status)

    async def _models(self, request: Request) -> bytes:
        _check_readable(request)
        headers = request.headers
        caller = self._keys.authenticate(headers) or await self._keys.look_up(headers)
        anthropics = b"anthropic-version" in headers
        name = request.path.removeprefix("/v1/models").strip("/")  # percent-decoded; names may hold slashes
        snapshot = self._pipeline.snapshot
        if name:
            return show_model(snapshot, caller, name, in_anthropics_shape=anthropics)
        return list_models(snapshot, caller, in_anthropics_shape=anthropics)

    def _serve_other(self, request: Request, reply: HttpReply) -> None:
        self._metrics.request_started()
        status = 200
        path = request.path
        try:
            if path not in ("/healthz", "/readyz"):
                raise NotFound(f"unknown route `{request.method} {path[:200]}`", code="unknown_route")
            _check_readable(request)
            respond(reply, 200, self._status(), JSON)
        except GatewayError as error:
            status = error.status
            self._refuse(reply, error, protocol_of(path))
        except Exception as error:  # noqa: BLE001 - likewise
            status = 500
            self._fail(reply, error, protocol_of(path))
        finally:
            self._metrics.request_finished("other", status)

    def _serve_internal(self, path: str, reply: HttpReply) -> None:
        if path == "/internal/metrics":
            respond(reply, 200, self._metrics.exposition(), EXPOSITION)
        elif path == "/internal/health":
            outlook = self._pipeline.health.outlook(asyncio.get_running_loop().time(), time())
            respond(reply, 200, msgspec.json.encode(outlook.endpoints), JSON)
        elif path == "/internal/learned":
            respond(reply, 200, self._pipeline.health.export(time()), JSON)
        elif path == "/internal/spans":
            respond(reply, 200, self._pipeline.tracer.drain(), MESSAGE_PACK)
        elif path == "/internal/reload":
            self._reload()
            respond(reply, 200, self._status(), JSON)
        else:
            respond(reply, 404, b"{}", JSON)

    def _fail(self, reply: HttpReply, error: Exception, protocol: ClientProtocol) -> None:
        request_id = new_request_id()
        _log.error("request %s could not be served", request_id, exc_info=error)
        headers = [(b"x-hatchway-request-id", request_id.encode())]
        failure = InternalError("the gateway failed", code="internal_error", headers=headers)
        respond_error(reply, failure, protocol)

    def _refuse(self, reply: HttpReply, error: GatewayError, protocol: ClientProtocol) -> str | None:
        """Returns the id that is given to a request which has none, because it was not routed."""
        if not isinstance(error, (UpstreamFailed, RateLimited, DeadlineExceeded)):
            self._metrics.refused(error.status, error.code or error.type)
        request_id = None
        if all(name != b"x-hatchway-request-id" for name, _ in error.headers):
            request_id = new_request_id()
            error.headers = (*error.headers, (b"x-hatchway-request-id", request_id.encode()))
        respond_error(reply, error, protocol)
        return request_id

    def _status(self) -> bytes:
        version = self._pipeline.snapshot.configuration.version
        return msgspec.json.encode({"status": "ok", "policy_version": version})


def _check_readable(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("this path takes GET", headers=[(b"allow", b"GET, HEAD")])
