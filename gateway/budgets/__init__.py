"""Budgets and limits that hold over all workers and gateways of one database.

`accounts`: who pays for a request. `book`: a worker's reservations, out of leases, and its `windows` of requests and
tokens by the minute. `desk`: the control plane's side, which gives leases out of what the ledger says is left.
`watch`: thresholds, alerts and forecasts. How it holds: docs/decisions/0023-budgets-by-leases.md.
"""
