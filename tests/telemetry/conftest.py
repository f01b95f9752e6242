"""A gateway on a real socket, as the tests of the pipeline have it."""

from tests.pipeline.conftest import script_upstream, start_gateway  # noqa: F401 - fixtures
