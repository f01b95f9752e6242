"""Hatchway's gateway. One request, in file order:

`api/chat.py` parses once and keeps the bytes, `api/auth.py` turns the key into a caller, `pipeline.py` runs the
request's life: `routing/facts.py` reads what routing needs, `routing/plan.py` orders the endpoints, an adapter from
`adapters/` encodes, `upstream/` sends, the adapter reads usage while the bytes pass through, `routing/health.py`
learns, `accounting/` prices, and `ledger/spool.py` writes the event before the last byte leaves.
"""
