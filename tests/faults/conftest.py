"""A gateway on a real socket, as the tests of the pipeline have it."""

from tests.pipeline.conftest import (  # noqa: F401 - fixtures and a hook of pytest
    pytest_asyncio_loop_factories,
    script_upstream,
    start_gateway,
)
