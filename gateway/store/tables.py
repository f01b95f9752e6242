"""The schema, and the only one. `migrations/` brings a database to it; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
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
from sqlalchemy.dialects.postgresql import JSON, JSONB

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
    Column("organisation", Text),
    Column("gateway", Text),
    Column("service_tier", Text),
    Column("max_cost_usd", Numeric),
    # When it came, its month being closed by then: it counts in the month that was open. A trigger sets it.
    Column("late_at", TIME),
    Column("booked_at", TIME, Computed("COALESCE(late_at, started_at)", persisted=True)),
    CheckConstraint("max_cost_usd >= 0 AND max_cost_usd < 'Infinity'", name="max_cost_usd"),
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
    Index(None, "booked_at", postgresql_using="brin"),  # rows come almost in this order: a few pages of index
    # Few rows: requests that were tried more than once are counted by them.
    Index("ix_usage_events_later_attempts", "booked_at", postgresql_where=text("attempt > 1")),
)

DIMENSIONS = (
    *("organisation", "team", "project", "key_id", "cost_center", "route", "policy", "domain", "endpoint", "provider"),
    *("model", "upstream_model", "region", "service_tier", "status", "usage_source", "price_status"),
)
"""What usage is summed up by, hour for hour and day for day. In the sums unknown is the empty text."""

MEASURES = (
    *("attempts", "requests", "errors", *BUCKETS, "cost_usd", "used", "priced_used", "unpriced", "estimated"),
    *("max_cost_usd", "ttft_us", "ttft_count", "duration_us", "corrected_usd", "repriced"),
)
"""What is summed up. `requests` are first attempts; `used`: attempts that used tokens, `priced_used`: those of them
with a cost; `max_cost_usd`: of attempts without a cost; times in whole microseconds, so that sums are exact;
`corrected_usd` and `repriced`: what corrections add, and the attempts that they priced."""

# Sums of `usage_events` and `corrections`, kept by triggers in the transaction that adds the rows: always exact.
# `group_id` is the MD5 of the dimensions.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", TIME, primary_key=True),
    Column("group_id", Uuid(as_uuid=False), primary_key=True),
    *(Column(dimension, Text, nullable=False) for dimension in DIMENSIONS),
    *(Column(measure, Numeric, nullable=False) for measure in MEASURES),
)

# The same by the UTC day, so that a month is read at once where an hour has almost as many groups as rows.
usage_days = Table(
    "usage_days",
    metadata,
    Column("day", TIME, primary_key=True),
    Column("group_id", Uuid(as_uuid=False), primary_key=True),
    *(Column(dimension, Text, nullable=False) for dimension in DIMENSIONS),
    *(Column(measure, Numeric, nullable=False) for measure in MEASURES),
)

# Changes of cost, which never edit a usage event. `event_id` null: of no single attempt. `amount_usd` is the change;
# `is_first_price`: the attempt had no cost until now. A correction of a closed month is booked in the open one.
corrections = Table(
    "corrections",
    metadata,
    Column("correction_id", Uuid(as_uuid=False), primary_key=True),
    Column("event_id", Uuid(as_uuid=False)),
    Column("at", TIME, nullable=False, server_default=func.now()),
    Column("booked_at", TIME, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("amount_usd", Numeric, nullable=False),
    Column("is_first_price", Boolean, nullable=False, server_default=text("false")),
    Column("prices", JSONB),
    Column("catalog_version", Text),
    *(Column(dimension, Text) for dimension in DIMENSIONS),
    CheckConstraint("kind IN ('price', 'reconciliation', 'adjustment')", name="kind"),
    CheckConstraint("amount_usd > '-Infinity' AND amount_usd < 'Infinity'", name="amount_usd"),
    Index(None, "event_id"),
    Index(None, "booked_at"),
)

# Months that finance has closed, by their first day (UTC). No row may be booked in them any more.
months = Table(
    "months",
    metadata,
    Column("month", Date, primary_key=True),
    Column("closed_at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
    Column("manifest", JSONB, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
)

# Price catalogues; the newest approved one is in force.
catalogues = Table(
    "catalogues",
    metadata,
    Column("version", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("proposed_at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
    Column("decided_at", TIME),
    Column("decided_by", Text),
    Column("body", LargeBinary, nullable=False),  # JSON, compressed by zlib
    CheckConstraint("state IN ('proposed', 'approved', 'rejected')", name="state"),
)

# What each worker may spend of an account's budget without asking again. `holder`: gateway and worker process.
budget_leases = Table(
    "budget_leases",
    metadata,
    Column("account", Text, primary_key=True),
    Column("period_start", TIME, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("amount_usd", Numeric, nullable=False),
    Column("renewed_at", TIME, nullable=False, server_default=func.now()),
    Column("is_wanted", Boolean, nullable=False, server_default=text("false")),  # others need what is not in use
    CheckConstraint("amount_usd >= 0", name="amount_usd"),
)

# Requests and tokens that were given out of a minute's limit.
rate_windows = Table(
    "rate_windows",
    metadata,
    Column("account", Text, primary_key=True),
    Column("minute", TIME, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

# Alerts that were sent: each threshold of a period once, whichever gateway saw it first.
budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("account", Text, primary_key=True),
    Column("period_start", TIME, primary_key=True),
    Column("threshold", Numeric, primary_key=True),
    Column("at", TIME, nullable=False, server_default=func.now()),
    Column("spent_usd", Numeric, nullable=False),
    Column("limit_usd", Numeric, nullable=False),
)

# What operators did. Each hash covers its row and the hash before it; nobody changes or deletes rows.
audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index(None, "at"),
)

# Organisations, teams, projects and cost centres that were written by API; the YAML wins. `id` of a project: TEAM/ID.
directory = Table(
    "directory",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("body", JSONB, nullable=False),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
    CheckConstraint("kind IN ('organisation', 'team', 'project', 'cost_center')", name="kind"),
)

# Providers' secrets, encrypted with a key that is not in the database.
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("key_hint", Text, nullable=False),  # which key encrypted it
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
)

# What was asked and answered, where a policy keeps it.
prompts = Table(
    "prompts",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("at", TIME, nullable=False),
    Column("expires_at", TIME, nullable=False),
    Column("team", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("body", JSONB, nullable=False),
    Index(None, "expires_at"),
)

# Comparisons of the ledger with what providers say.
reconciliations = Table(
    "reconciliations",
    metadata,
    Column("reconciliation_id", Text, primary_key=True),
    Column("at", TIME, nullable=False, server_default=func.now()),
    Column("author", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("result", JSONB, nullable=False),
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
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("cost_center", Text),
    Column("budget_usd", Numeric),
    Column("budget_per", Text),
    Column("budget_hard", Boolean),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("previous_hash", LargeBinary),  # the secret before the last rotation, which still works until then
    Column("previous_until", TIME),
    CheckConstraint("role IN ('key', 'admin', 'operator', 'finance', 'developer')", name="role"),
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
    Column("earlier_body", JSONB),  # of rows that were written before `body` was
    Column("body", JSON),
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
