"""What finance needs: sums by hour and day, corrections, closed months, catalogues, budgets, audit, governance.

Triggers keep what must always hold, whoever writes: a usage event is never changed, `usage_hours` and `usage_days`
equal the rows to the last digit in the same transaction, and nothing is booked in a closed month.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_DIMENSIONS = (
    *("organisation", "team", "project", "key_id", "cost_center", "route", "policy", "domain", "endpoint", "provider"),
    *("model", "upstream_model", "region", "service_tier", "status", "usage_source", "price_status"),
)
_BUCKETS = (
    *("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens"),
    *("input_image_tokens", "output_tokens", "reasoning_tokens", "output_audio_tokens"),
)
_USED = f"greatest({', '.join(_BUCKETS)}) > 0"
_EVENT_SUMS = {
    "attempts": "count(*)",
    "requests": "count(*) FILTER (WHERE attempt = 1)",
    "errors": "count(*) FILTER (WHERE status IN ('error', 'timeout', 'shed'))",
    **{bucket: f"sum({bucket})" for bucket in _BUCKETS},
    "cost_usd": "coalesce(sum(cost_usd), 0)",
    "used": f"count(*) FILTER (WHERE {_USED})",
    "priced_used": f"count(*) FILTER (WHERE {_USED} AND cost_usd IS NOT NULL)",
    "unpriced": "count(*) FILTER (WHERE cost_usd IS NULL)",
    "estimated": "count(*) FILTER (WHERE usage_source = 'estimated')",
    "max_cost_usd": "coalesce(sum(max_cost_usd) FILTER (WHERE cost_usd IS NULL), 0)",
    "ttft_us": "coalesce(sum(round(ttft_ms::numeric * 1000)), 0)",
    "ttft_count": "count(ttft_ms)",
    "duration_us": "coalesce(sum(round(duration_ms::numeric * 1000)), 0)",
}
_CORRECTION_SUMS = {
    "corrected_usd": "sum(amount_usd)",
    "repriced": "count(*) FILTER (WHERE is_first_price)",
}
_MEASURES = (*_EVENT_SUMS, *_CORRECTION_SUMS)
_MONTHS_LOCK = 7305801
"""Key of the advisory lock that writers of the ledger share, and that closing a month takes alone."""


def upgrade() -> None:
    _extend_tables()
    _create_tables()
    _keep_hours("usage_events", _EVENT_SUMS)
    _keep_hours("corrections", _CORRECTION_SUMS)
    _keep_months_closed()
    _keep_rows()
    _add_up_what_is_there()


def _extend_tables() -> None:
    op.execute("""
    ALTER TABLE usage_events
      ADD COLUMN organisation TEXT,
      ADD COLUMN gateway TEXT,
      ADD COLUMN service_tier TEXT,
      ADD COLUMN max_cost_usd NUMERIC,
      ADD COLUMN late_at TIMESTAMP WITH TIME ZONE,
      ADD COLUMN booked_at TIMESTAMP WITH TIME ZONE GENERATED ALWAYS AS (COALESCE(late_at, started_at)) STORED,
      ADD CONSTRAINT ck_usage_events_max_cost_usd CHECK (max_cost_usd >= 0 AND max_cost_usd < 'Infinity');
    CREATE INDEX ix_usage_events_booked_at ON usage_events USING brin (booked_at);
    CREATE INDEX ix_usage_events_later_attempts ON usage_events (booked_at) WHERE attempt > 1;
    ALTER TABLE api_keys
      ADD COLUMN scopes TEXT[] DEFAULT '{}'::text[] NOT NULL,
      ADD COLUMN cost_center TEXT,
      ADD COLUMN budget_usd NUMERIC,
      ADD COLUMN budget_per TEXT,
      ADD COLUMN budget_hard BOOLEAN,
      ADD COLUMN rpm BIGINT,
      ADD COLUMN tpm BIGINT,
      ADD COLUMN previous_hash BYTEA,
      ADD COLUMN previous_until TIMESTAMP WITH TIME ZONE,
      DROP CONSTRAINT ck_api_keys_role,
      ADD CONSTRAINT ck_api_keys_role CHECK (role IN ('key', 'admin', 'operator', 'finance', 'developer'));
    """)


def _create_tables() -> None:
    op.execute("""
    CREATE TABLE usage_hours (
      hour TIMESTAMP WITH TIME ZONE NOT NULL,
      group_id UUID NOT NULL,
      organisation TEXT NOT NULL,
      team TEXT NOT NULL,
      project TEXT NOT NULL,
      key_id TEXT NOT NULL,
      cost_center TEXT NOT NULL,
      route TEXT NOT NULL,
      policy TEXT NOT NULL,
      domain TEXT NOT NULL,
      endpoint TEXT NOT NULL,
      provider TEXT NOT NULL,
      model TEXT NOT NULL,
      upstream_model TEXT NOT NULL,
      region TEXT NOT NULL,
      service_tier TEXT NOT NULL,
      status TEXT NOT NULL,
      usage_source TEXT NOT NULL,
      price_status TEXT NOT NULL,
      attempts NUMERIC NOT NULL,
      requests NUMERIC NOT NULL,
      errors NUMERIC NOT NULL,
      input_tokens NUMERIC NOT NULL,
      cache_read_tokens NUMERIC NOT NULL,
      cache_write_5m_tokens NUMERIC NOT NULL,
      cache_write_1h_tokens NUMERIC NOT NULL,
      input_audio_tokens NUMERIC NOT NULL,
      input_image_tokens NUMERIC NOT NULL,
      output_tokens NUMERIC NOT NULL,
      reasoning_tokens NUMERIC NOT NULL,
      output_audio_tokens NUMERIC NOT NULL,
      cost_usd NUMERIC NOT NULL,
      used NUMERIC NOT NULL,
      priced_used NUMERIC NOT NULL,
      unpriced NUMERIC NOT NULL,
      estimated NUMERIC NOT NULL,
      max_cost_usd NUMERIC NOT NULL,
      ttft_us NUMERIC NOT NULL,
      ttft_count NUMERIC NOT NULL,
      duration_us NUMERIC NOT NULL,
      corrected_usd NUMERIC NOT NULL,
      repriced NUMERIC NOT NULL,
      CONSTRAINT pk_usage_hours PRIMARY KEY (hour, group_id)
    );
    CREATE TABLE usage_days (
      day TIMESTAMP WITH TIME ZONE NOT NULL,
      group_id UUID NOT NULL,
      organisation TEXT NOT NULL,
      team TEXT NOT NULL,
      project TEXT NOT NULL,
      key_id TEXT NOT NULL,
      cost_center TEXT NOT NULL,
      route TEXT NOT NULL,
      policy TEXT NOT NULL,
      domain TEXT NOT NULL,
      endpoint TEXT NOT NULL,
      provider TEXT NOT NULL,
      model TEXT NOT NULL,
      upstream_model TEXT NOT NULL,
      region TEXT NOT NULL,
      service_tier TEXT NOT NULL,
      status TEXT NOT NULL,
      usage_source TEXT NOT NULL,
      price_status TEXT NOT NULL,
      attempts NUMERIC NOT NULL,
      requests NUMERIC NOT NULL,
      errors NUMERIC NOT NULL,
      input_tokens NUMERIC NOT NULL,
      cache_read_tokens NUMERIC NOT NULL,
      cache_write_5m_tokens NUMERIC NOT NULL,
      cache_write_1h_tokens NUMERIC NOT NULL,
      input_audio_tokens NUMERIC NOT NULL,
      input_image_tokens NUMERIC NOT NULL,
      output_tokens NUMERIC NOT NULL,
      reasoning_tokens NUMERIC NOT NULL,
      output_audio_tokens NUMERIC NOT NULL,
      cost_usd NUMERIC NOT NULL,
      used NUMERIC NOT NULL,
      priced_used NUMERIC NOT NULL,
      unpriced NUMERIC NOT NULL,
      estimated NUMERIC NOT NULL,
      max_cost_usd NUMERIC NOT NULL,
      ttft_us NUMERIC NOT NULL,
      ttft_count NUMERIC NOT NULL,
      duration_us NUMERIC NOT NULL,
      corrected_usd NUMERIC NOT NULL,
      repriced NUMERIC NOT NULL,
      CONSTRAINT pk_usage_days PRIMARY KEY (day, group_id)
    );
    CREATE TABLE corrections (
      correction_id UUID NOT NULL,
      event_id UUID,
      at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      booked_at TIMESTAMP WITH TIME ZONE NOT NULL,
      kind TEXT NOT NULL,
      reason TEXT NOT NULL,
      author TEXT NOT NULL,
      amount_usd NUMERIC NOT NULL,
      is_first_price BOOLEAN DEFAULT false NOT NULL,
      prices JSONB,
      catalog_version TEXT,
      organisation TEXT,
      team TEXT,
      project TEXT,
      key_id TEXT,
      cost_center TEXT,
      route TEXT,
      policy TEXT,
      domain TEXT,
      endpoint TEXT,
      provider TEXT,
      model TEXT,
      upstream_model TEXT,
      region TEXT,
      service_tier TEXT,
      status TEXT,
      usage_source TEXT,
      price_status TEXT,
      CONSTRAINT pk_corrections PRIMARY KEY (correction_id),
      CONSTRAINT ck_corrections_kind CHECK (kind IN ('price', 'reconciliation', 'adjustment')),
      CONSTRAINT ck_corrections_amount_usd CHECK (amount_usd > '-Infinity' AND amount_usd < 'Infinity')
    );
    CREATE INDEX ix_corrections_booked_at ON corrections (booked_at);
    CREATE INDEX ix_corrections_event_id ON corrections (event_id);
    CREATE TABLE months (
      month DATE NOT NULL,
      closed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      author TEXT NOT NULL,
      manifest JSONB NOT NULL,
      signature BYTEA NOT NULL,
      public_key BYTEA NOT NULL,
      CONSTRAINT pk_months PRIMARY KEY (month)
    );
    CREATE TABLE catalogues (
      version TEXT NOT NULL,
      source TEXT NOT NULL,
      state TEXT NOT NULL,
      proposed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      author TEXT NOT NULL,
      decided_at TIMESTAMP WITH TIME ZONE,
      decided_by TEXT,
      body BYTEA NOT NULL,
      CONSTRAINT pk_catalogues PRIMARY KEY (version),
      CONSTRAINT ck_catalogues_state CHECK (state IN ('proposed', 'approved', 'rejected'))
    );
    CREATE TABLE budget_leases (
      account TEXT NOT NULL,
      period_start TIMESTAMP WITH TIME ZONE NOT NULL,
      holder TEXT NOT NULL,
      amount_usd NUMERIC NOT NULL,
      renewed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      is_wanted BOOLEAN DEFAULT false NOT NULL,
      CONSTRAINT pk_budget_leases PRIMARY KEY (account, period_start, holder),
      CONSTRAINT ck_budget_leases_amount_usd CHECK (amount_usd >= 0)
    );
    CREATE TABLE rate_windows (
      account TEXT NOT NULL,
      minute TIMESTAMP WITH TIME ZONE NOT NULL,
      requests BIGINT NOT NULL,
      tokens BIGINT NOT NULL,
      CONSTRAINT pk_rate_windows PRIMARY KEY (account, minute)
    );
    CREATE TABLE budget_alerts (
      account TEXT NOT NULL,
      period_start TIMESTAMP WITH TIME ZONE NOT NULL,
      threshold NUMERIC NOT NULL,
      at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      spent_usd NUMERIC NOT NULL,
      limit_usd NUMERIC NOT NULL,
      CONSTRAINT pk_budget_alerts PRIMARY KEY (account, period_start, threshold)
    );
    CREATE TABLE audit_log (
      seq BIGINT NOT NULL,
      at TIMESTAMP WITH TIME ZONE NOT NULL,
      actor TEXT NOT NULL,
      role TEXT NOT NULL,
      action TEXT NOT NULL,
      subject TEXT NOT NULL,
      detail JSONB NOT NULL,
      previous BYTEA NOT NULL,
      hash BYTEA NOT NULL,
      CONSTRAINT pk_audit_log PRIMARY KEY (seq)
    );
    CREATE INDEX ix_audit_log_at ON audit_log (at);
    CREATE TABLE directory (
      kind TEXT NOT NULL,
      id TEXT NOT NULL,
      body JSONB NOT NULL,
      updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      author TEXT NOT NULL,
      CONSTRAINT pk_directory PRIMARY KEY (kind, id),
      CONSTRAINT ck_directory_kind CHECK (kind IN ('organisation', 'team', 'project', 'cost_center'))
    );
    CREATE TABLE secrets (
      name TEXT NOT NULL,
      ciphertext BYTEA NOT NULL,
      key_hint TEXT NOT NULL,
      updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      author TEXT NOT NULL,
      CONSTRAINT pk_secrets PRIMARY KEY (name)
    );
    CREATE TABLE prompts (
      request_id TEXT NOT NULL,
      at TIMESTAMP WITH TIME ZONE NOT NULL,
      expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
      team TEXT NOT NULL,
      policy TEXT NOT NULL,
      body JSONB NOT NULL,
      CONSTRAINT pk_prompts PRIMARY KEY (request_id)
    );
    CREATE INDEX ix_prompts_expires_at ON prompts (expires_at);
    CREATE TABLE reconciliations (
      reconciliation_id TEXT NOT NULL,
      at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
      author TEXT NOT NULL,
      source TEXT NOT NULL,
      result JSONB NOT NULL,
      CONSTRAINT pk_reconciliations PRIMARY KEY (reconciliation_id)
    );
    """)


def _add_up(sums: dict[str, str], source: str) -> str:
    """The statement that adds the sums of the rows in `source` to `usage_hours` and `usage_days`. `sign` is -1 for rows
    that go."""
    group = ", ".join(f"coalesce({name}, '') AS {name}" for name in _DIMENSIONS)
    measures = ", ".join(f"sign * ({sums[name]}) AS {name}" if name in sums else f"0 AS {name}" for name in _MEASURES)
    names = ", ".join((*_DIMENSIONS, *_MEASURES))
    totals = ", ".join(f"sum({name})" for name in _MEASURES)
    changes = ", ".join(f"{name} = known.{name} + excluded.{name}" for name in _MEASURES)
    numbers = ", ".join(str(position) for position in range(1, len(_DIMENSIONS) + 2))
    # Both in one order always, so that two writers never wait for each other.
    return f"""
    WITH sums AS MATERIALIZED (
      SELECT hour, md5(ROW({", ".join(_DIMENSIONS)})::text)::uuid AS group_id, {names}
      FROM (
        SELECT date_trunc('hour', booked_at, 'UTC') AS hour, {group}, {measures}
        FROM {source} GROUP BY {numbers}
      ) AS grouped
    ), days AS (
      INSERT INTO usage_days AS known (day, group_id, {names})
      SELECT date_trunc('day', hour, 'UTC') AS day, group_id, {", ".join(_DIMENSIONS)}, {totals}
      FROM sums GROUP BY day, group_id, {", ".join(_DIMENSIONS)} ORDER BY day, group_id
      ON CONFLICT (day, group_id) DO UPDATE SET {changes}
    )
    INSERT INTO usage_hours AS known (hour, group_id, {names})
    SELECT hour, group_id, {names} FROM sums ORDER BY hour, group_id
    ON CONFLICT (hour, group_id) DO UPDATE SET {changes};
    """


def _keep_hours(table: str, sums: dict[str, str]) -> None:
    op.execute(f"""
    CREATE FUNCTION hatchway_add_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sign CONSTANT integer := CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END;
    BEGIN
      {_add_up(sums, "changed")}
      RETURN NULL;
    END $$;
    CREATE TRIGGER add_to_hours AFTER INSERT ON {table} REFERENCING NEW TABLE AS changed
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_add_{table}();
    CREATE TRIGGER take_from_hours AFTER DELETE ON {table} REFERENCING OLD TABLE AS changed
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_add_{table}();
    """)


def _keep_months_closed() -> None:
    op.execute(f"""
    CREATE FUNCTION hatchway_share_months() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_advisory_xact_lock_shared({_MONTHS_LOCK});
      RETURN NULL;
    END $$;
    CREATE TRIGGER share_months BEFORE INSERT OR DELETE ON usage_events
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_share_months();
    CREATE TRIGGER share_months BEFORE INSERT OR DELETE ON corrections
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_share_months();

    CREATE FUNCTION hatchway_is_closed(moment timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
      SELECT EXISTS (SELECT 1 FROM months WHERE month = date_trunc('month', moment, 'UTC')::date)
    $$;
    CREATE FUNCTION hatchway_book_late() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF hatchway_is_closed(NEW.started_at) THEN NEW.late_at := clock_timestamp(); END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER book_late BEFORE INSERT ON usage_events FOR EACH ROW
      WHEN (NEW.started_at < date_trunc('month', now(), 'UTC')) EXECUTE FUNCTION hatchway_book_late();
    CREATE FUNCTION hatchway_book_correction() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF hatchway_is_closed(NEW.booked_at) THEN NEW.booked_at := clock_timestamp(); END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER book_late BEFORE INSERT ON corrections FOR EACH ROW
      WHEN (NEW.booked_at < date_trunc('month', now(), 'UTC')) EXECUTE FUNCTION hatchway_book_correction();

    CREATE FUNCTION hatchway_keep_closed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF hatchway_is_closed(OLD.booked_at) THEN
        RAISE EXCEPTION 'the month of this row is closed' USING HINT = 'write a correction';
      END IF;
      RETURN OLD;
    END $$;
    CREATE TRIGGER keep_closed BEFORE DELETE ON usage_events FOR EACH ROW EXECUTE FUNCTION hatchway_keep_closed();
    CREATE TRIGGER keep_closed BEFORE DELETE ON corrections FOR EACH ROW EXECUTE FUNCTION hatchway_keep_closed();
    """)


def _keep_rows() -> None:
    op.execute("""
    CREATE FUNCTION hatchway_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME USING HINT = 'write a correction';
    END $$;
    CREATE TRIGGER refuse_change BEFORE UPDATE ON usage_events
      FOR EACH ROW EXECUTE FUNCTION hatchway_refuse_change();
    CREATE TRIGGER refuse_change BEFORE UPDATE ON corrections
      FOR EACH ROW EXECUTE FUNCTION hatchway_refuse_change();
    CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit_log
      FOR EACH ROW EXECUTE FUNCTION hatchway_refuse_change();
    CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON months
      FOR EACH ROW EXECUTE FUNCTION hatchway_refuse_change();
    CREATE TRIGGER refuse_emptying BEFORE TRUNCATE ON audit_log
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_refuse_change();
    CREATE TRIGGER refuse_emptying BEFORE TRUNCATE ON months
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_refuse_change();

    CREATE FUNCTION hatchway_empty_hours() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (SELECT 1 FROM months) THEN
        RAISE EXCEPTION 'there are closed months' USING HINT = 'a ledger with closed months is not emptied';
      END IF;
      TRUNCATE usage_hours;
      TRUNCATE usage_days;
      TRUNCATE corrections;
      RETURN NULL;
    END $$;
    CREATE TRIGGER empty_hours AFTER TRUNCATE ON usage_events
      FOR EACH STATEMENT EXECUTE FUNCTION hatchway_empty_hours();
    """)


def _add_up_what_is_there() -> None:
    op.execute(f"DO $$ DECLARE sign CONSTANT integer := 1; BEGIN {_add_up(_EVENT_SUMS, 'usage_events')} END $$;")
