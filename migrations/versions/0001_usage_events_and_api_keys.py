"""The ledger and the keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

# Written out rather than imported: a migration stays what it was when `gateway.types` moves on.
BUCKETS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
)


def upgrade() -> None:
    op.create_table(
        "usage_events",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("project", sa.Text()),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("cost_center", sa.Text()),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text()),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("upstream_model", sa.Text(), nullable=False),
        sa.Column("region", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text()),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("ttft_ms", sa.Double()),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        *(sa.Column(bucket, sa.BigInteger(), nullable=False) for bucket in BUCKETS),
        sa.Column("usage_source", sa.Text(), nullable=False),
        sa.Column("price_status", sa.Text(), nullable=False),
        sa.Column("cost_usd", sa.Numeric()),
        sa.Column("prices", postgresql.JSONB()),
        sa.Column("catalog_version", sa.Text()),
        sa.Column("tags", postgresql.JSONB()),
        sa.Column("raw_usage", postgresql.JSONB()),
        sa.PrimaryKeyConstraint("event_id", name="pk_usage_events"),
        check("usage_events", "attempt", "attempt >= 1"),
        check("usage_events", "status", "status IN ('ok', 'error', 'cancelled', 'timeout', 'shed')"),
        check("usage_events", "usage_source", "usage_source IN ('reported', 'estimated', 'none')"),
        check("usage_events", "price_status", "price_status IN ('priced', 'unpriced')"),
        check("usage_events", "cost_usd", "cost_usd >= 0 AND cost_usd < 'Infinity'"),
        check("usage_events", "unpriced_has_no_cost", "price_status = 'priced' OR cost_usd IS NULL"),
        *(check("usage_events", bucket, f"{bucket} >= 0") for bucket in BUCKETS),
    )
    op.create_index("ix_usage_events_started_at", "usage_events", ["started_at"])
    op.create_index("ix_usage_events_team_started_at", "usage_events", ["team", "started_at"])
    op.create_index("ix_usage_events_request_id", "usage_events", ["request_id"])
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("project", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_hash", name="uq_api_keys_secret_hash"),
        check("api_keys", "role", "role IN ('key', 'admin')"),
        check("api_keys", "secret_hash", "octet_length(secret_hash) = 32"),
    )
    # For each row rather than each statement: an upsert that changes nothing wakes nobody.
    op.execute(
        """
        CREATE FUNCTION hatchway_notify_keys() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('hatchway_keys', coalesce(NEW.key_id, OLD.key_id));
            RETURN NULL;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER hatchway_notify_keys AFTER INSERT OR UPDATE OR DELETE ON api_keys
        FOR EACH ROW EXECUTE FUNCTION hatchway_notify_keys()
        """
    )


def downgrade() -> None:
    op.drop_table("api_keys")
    op.execute("DROP FUNCTION hatchway_notify_keys()")
    op.drop_table("usage_events")


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))
