"""Alembic's entry. `gateway.store.migrate` brings the connection, its transaction and its lock."""

from alembic import context

from gateway.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
