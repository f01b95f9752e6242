"""Whatever the description of the admin API allows, and what it forbids, sent to the real control plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.api.access import PERMISSIONS
from gateway.config.model import Secret
from gateway.store.database import Database
from gateway.store.keys import ensure_admin_key
from tests.api.plane import running_plane

EXAMPLES = 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    # Not that what the description allows is taken: names of what is not there are allowed by it. Who may call is
    # settled in `test_access.py`, for each role.
]
ADMIN_KEY = "the-admin-key-of-these-tests"


@pytest.fixture(scope="module")
def url(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ensure_admin_key(database.engine, Secret(ADMIN_KEY))
    with running_plane(database, tmp_path_factory.mktemp("plane")) as url:
        yield url


@pytest.fixture(scope="module")
def description(url: str) -> Any:
    checks = {"negative_data_rejection": {"expected-statuses": ["4xx"]}}  # 413 too: a text may be over every bound
    config = schemathesis.Config.from_dict({"checks": checks})
    return schemathesis.openapi.from_url(f"{url}/admin/api/openapi.json", config=config)


def cases(operation: APIOperation) -> SearchStrategy[Case]:
    """What the operation's description allows, and what it forbids."""
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    takes_anything = operation.path_parameters or operation.query or operation.body
    return allowed | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) if takes_anything else allowed


@pytest.mark.parametrize("name", sorted(PERMISSIONS))
def test_answers_are_as_described(description: Any, name: str) -> None:
    operation = description.find_operation_by_id(name)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(operation))
    def call(case: Case) -> None:
        case.call_and_validate(headers={"authorization": f"Bearer {ADMIN_KEY}"}, checks=CHECKS)

    call()
