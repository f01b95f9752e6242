"""The write-ahead path of usage events: worker's spool to PostgreSQL."""
