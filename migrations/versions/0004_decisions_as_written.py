"""Decisions as the JSON text that they are.

To make a `jsonb` of a decision took half of what storing one costs, and nothing looks into it by SQL. No row is
rewritten: those that are there keep their `jsonb` under another name, until they are deleted (`decisions.keep`).
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE decisions RENAME COLUMN body TO earlier_body;
    ALTER TABLE decisions ALTER COLUMN earlier_body DROP NOT NULL, ADD COLUMN body JSON;
    """)
