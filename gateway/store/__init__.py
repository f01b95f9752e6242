"""PostgreSQL: tables, migrations, queries by noun."""
