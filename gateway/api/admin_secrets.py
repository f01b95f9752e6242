"""Providers' secrets are set and removed here, and never shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, read_body
from gateway.errors import InvalidRequest, NotFound, StoreError, Unavailable
from gateway.secrets import MAX_VALUE, Cipher, SecretError, check_name, check_value
from gateway.store.secrets import TooManySecrets, list_secrets, remove_secret, store_secret


@dataclass(frozen=True)
class SecretServices:
    """What is asked of the control plane. `cipher`: with the keys of this gateway, one being made where there is none;
    raises SecretError, OSError. `publish`: hands the ciphertexts to the workers; raises StoreError, OSError."""

    engine: Engine
    cipher: Callable[[], Cipher]
    publish: Callable[[], Awaitable[None]]


class StoredSecret(BaseModel):
    name: str
    key_hint: str = Field(description="which key encrypted it; not secret")
    updated_at: datetime
    author: str


class SecretList(BaseModel):
    secrets: list[StoredSecret]


class SecretValue(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    value: SecretStr = Field(min_length=1, max_length=MAX_VALUE)


def add_secrets(api: APIRouter, services: SecretServices) -> None:
    @api.get("/secrets", tags=["secrets"])
    async def show_secrets() -> SecretList:
        """The names of the stored secrets. A provider takes one as `${secret:NAME}`."""
        rows = await asyncio.to_thread(list_secrets, services.engine)
        return SecretList(
            secrets=[
                StoredSecret(name=row.name, key_hint=row.key_hint, updated_at=row.updated_at, author=row.author)
                for row in rows
            ]
        )

    @api.put("/secrets/{name}", tags=["secrets"], status_code=204, openapi_extra=described_body(SecretValue))
    async def set_secret(name: str, request: Request) -> None:
        """Sets a secret or replaces it. Workers have it when this answers; nothing gives it out again."""
        author = actor_of(request).author
        wanted = parse_value(await read_body(request)).value.get_secret_value().strip()
        try:
            check_name(name)
            check_value(wanted)
        except SecretError as error:
            raise InvalidRequest(str(error), code="invalid_value") from None
        try:
            cipher = await asyncio.to_thread(services.cipher)
        except (SecretError, OSError) as error:
            raise Unavailable(f"the key for secrets cannot be had: {error}", code="secret_key") from None
        try:
            await asyncio.to_thread(store_secret, services.engine, cipher.seal(name, wanted), author)
        except TooManySecrets as error:
            raise InvalidRequest(str(error), code="invalid_value") from None
        await services.publish()

    @api.delete("/secrets/{name}", tags=["secrets"], status_code=204)
    async def remove_stored_secret(name: str, request: Request) -> None:
        """Removes a secret. Providers that name it are `missing` from then on."""
        try:
            check_name(name)
        except SecretError as error:
            raise InvalidRequest(str(error), code="invalid_value") from None
        if not await asyncio.to_thread(remove_secret, services.engine, name, actor_of(request).author):
            raise NotFound(f"there is no secret `{name}`", code="secret_not_found")
        await services.publish()


def add_internal_secrets(router: APIRouter, services: SecretServices) -> None:
    """For the command line, which writes to PostgreSQL itself."""

    @router.post("/secrets")
    async def publish_secrets() -> Response:
        try:
            await services.publish()
        except (StoreError, OSError) as error:
            return Response(msgspec.json.encode({"error": str(error)}), 503, media_type="application/json")
        return answer(b"{}")


def parse_value(body: bytes) -> SecretValue:
    """Raises RequestValidationError, which repeats nothing of the body."""
    try:
        return SecretValue.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(found) from None
