"""Configuration: settings of the process (environment) and the routing configuration (YAML), compiled and immutable.

`settings.py` reads the environment, `document.py` reads YAML and remembers where each value stands, `compiler.py`
turns a document into a `Configuration` or lists every mistake, `model.py` defines what comes out.
"""
