"""Configuration: settings of the process (environment) and the routing configuration (YAML), compiled and immutable.

`settings.py` reads the environment, `document.py` reads YAML and remembers where each value stands, `compiler.py`
turns a document into a `Configuration` or lists every mistake, `model.py` defines what comes out. Each part of a
document has its file (`providers.py`, `endpoints.py`, `policies.py`, `routes.py`, `teams.py`), which takes its values
with `section.py`; `constraints.py` looks at them together, `check.py` adds what is allowed but probably not meant.
"""
