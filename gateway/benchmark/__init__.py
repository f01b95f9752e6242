"""What the gateway costs on this machine, beside its limits and beside other gateways: `hatchway bench gateway | soak`.

Nothing else imports this package. Gateways, proxies and upstreams run as processes of their own, and are reached by
HTTP alone. Times are `time.monotonic_ns`, one clock for all processes of a machine.
"""
