"""The schema, and the only one. `migrations/` brings a database to it; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from gateway.types import BUCKETS

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

KEYS_CHANNEL = "hatchway_keys"
"""NOTIFY on this channel follows every change of `api_keys`; the payload is the key id."""

TIME = DateTime(timezone=True)

# One row for each attempt; the columns are `gateway.types.UsageEvent`, with `usage` spread out into its buckets.
usage_events = Table(
    "usage_events",
    metadata,
    Column("event_id", Uuid(as_uuid=False), primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("ended_at", TIME, nullable=False),
    Column("team", Text, nullable=False),
    Column("project", Text),
    Column("key_id", Text, nullable=False),
    Column("cost_center", Text),
    Column("route", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("policy_version", Text, nullable=False),
    Column("domain", Text),
    Column("endpoint", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("region", Text),
    Column("status", Text, nullable=False),
    Column("error_type", Text),
    Column("stream", Boolean, nullable=False),
    Column("ttft_ms", Double),
    Column("duration_ms", Double, nullable=False),
    *(Column(bucket, BigInteger, nullable=False) for bucket in BUCKETS),
    Column("usage_source", Text, nullable=False),
    Column("price_status", Text, nullable=False),
    Column("cost_usd", Numeric),  # without a scale: a cost is kept to its last digit
    Column("prices", JSONB),
    Column("catalog_version", Text),
    Column("tags", JSONB),
    Column("raw_usage", JSONB),
    CheckConstraint("attempt >= 1", name="attempt"),
    CheckConstraint("status IN ('ok', 'error', 'cancelled', 'timeout', 'shed')", name="status"),
    CheckConstraint("usage_source IN ('reported', 'estimated', 'none')", name="usage_source"),
    CheckConstraint("price_status IN ('priced', 'unpriced')", name="price_status"),
    # NaN is greater than every number in PostgreSQL, and one of it would turn each sum into NaN.
    CheckConstraint("cost_usd >= 0 AND cost_usd < 'Infinity'", name="cost_usd"),
    CheckConstraint("price_status = 'priced' OR cost_usd IS NULL", name="unpriced_has_no_cost"),
    *(CheckConstraint(f"{bucket} >= 0", name=bucket) for bucket in BUCKETS),
    Index(None, "started_at"),
    Index(None, "team", "started_at"),
    Index(None, "request_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    # SHA-256 of the whole secret. A secret is 256 random bits, so nobody can search for it, and salt or a slow hash
    # would protect nothing; a plain hash is found by an index.
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),  # of the secret, so that its owner recognises it
    Column("role", Text, nullable=False),
    Column("team", Text, nullable=False),
    Column("project", Text),
    Column("name", Text),
    Column("models", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("created_at", TIME, nullable=False, server_default=func.now()),
    Column("revoked_at", TIME),
    Column("expires_at", TIME),
    CheckConstraint("role IN ('key', 'admin')", name="role"),
    CheckConstraint("octet_length(secret_hash) = 32", name="secret_hash"),
)

# One row for each decided request; `body` is what `gateway.routing.explanation` writes.
decisions = Table(
    "decisions",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("at", TIME, nullable=False),
    Column("team", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("policy_version", Text, nullable=False),
    Column("endpoint", Text),  # the first candidate; null: nobody may serve it
    Column("refusal", Text),  # the code of the error that the client got instead of an attempt
    Column("body", JSONB, nullable=False),
    Index(None, "at"),
)

# Every version of the configuration that came into force. `document` has no secrets; `is_complete`: nothing was masked.
configurations = Table(
    "configurations",
    metadata,
    Column("version", Text, primary_key=True),
    Column("at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("note", Text),
    Column("document", JSONB, nullable=False),
    Column("is_complete", Boolean, nullable=False),
)

# Movements of traffic from one endpoint to another.
escapes = Table(
    "escapes",
    metadata,
    Column("escape_id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_at", TIME, nullable=False, server_default=func.now()),
    Column("ended_at", TIME),
    Column("author", Text, nullable=False),
    Column("plan", JSONB, nullable=False),
    Column("report", JSONB),
    Column("events", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Index(None, "started_at"),
)
