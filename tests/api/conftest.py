"""A gateway on a real socket, as the tests of the pipeline have it; the server alone, before a scripted application."""

from tests.api.served import served  # noqa: F401 - a fixture
from tests.pipeline.conftest import (  # noqa: F401 - fixtures
    pytest_asyncio_loop_factories,
    script_upstream,
    start_gateway,
)
