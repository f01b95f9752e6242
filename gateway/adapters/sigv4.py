"""AWS Signature Version 4, in headers: what Bedrock asks for in place of a bearer key.

Source: docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html. As for every service but
S3, the path is encoded once more than it travels, and the body's hash needs no header of its own.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"


class SigV4Signer:
    """Signs requests of one AWS identity to one service in one region. The secrets are in no `repr`."""

    def __init__(
        self, access_key: str, secret_key: str, session_token: str | None, region: str, service: str = "bedrock"
    ) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._session_token = session_token
        self._region = region
        self._service = service
        self._day_key = ("", b"")  # the newest day and its signing key

    def __repr__(self) -> str:
        return f"SigV4Signer(region={self._region!r}, service={self._service!r})"

    def headers(self, method: str, host: str, target: str, body: bytes, now: datetime) -> list[tuple[str, str]]:
        """The headers to add to a request.

        `host`: the `host` header as it is sent, with the port if that is not the usual one. `target`: path and query
        as they are sent, percent-encoded. `now`: with its time zone; AWS refuses what is five minutes off.
        """
        moment = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        day = moment[:8]
        signed = [("host", host.strip()), ("x-amz-date", moment)]
        if self._session_token:
            signed.append(("x-amz-security-token", self._session_token))
        names = ";".join(name for name, _ in signed)
        path, _, query = target.partition("?")
        canonical = "\n".join(
            (
                method.upper(),
                quote(_without_dots(path), safe="/~"),
                _sorted_query(query),
                *(f"{name}:{value}" for name, value in signed),
                "",
                names,
                hashlib.sha256(body).hexdigest(),
            )
        )
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        to_sign = "\n".join((_ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        signature = hmac.new(self._key_of(day), to_sign.encode(), hashlib.sha256).hexdigest()
        credential = f"{self._access_key}/{scope}"
        authorization = f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        return [("authorization", authorization), *signed[1:]]

    def _key_of(self, day: str) -> bytes:
        known, key = self._day_key
        if known != day:
            key = f"AWS4{self._secret_key}".encode()
            for step in (day, self._region, self._service, "aws4_request"):
                key = hmac.new(key, step.encode(), hashlib.sha256).digest()
            self._day_key = (day, key)
        return key


def _without_dots(path: str) -> str:
    """`.`, `..` and doubled slashes are gone before a path is signed (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if kept and path.endswith("/") else ""
    return "/" + "/".join(kept) + end


def _sorted_query(query: str) -> str:
    """Parameters by name, then by value, as they are encoded already."""
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&")) if query else []
    return "&".join(f"{name}={value}" for name, value in pairs)
