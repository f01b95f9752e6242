"""GET /v1/models: what a caller may ask for. And the paths that belong to operators."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.gateway_fixtures import KEY, PATIENCE, Gateway, Upstream, answer, endpoints, key_record
from tests.pipeline.conftest import StartGateway, StartUpstream


@pytest.fixture
async def gateway(script_upstream: StartUpstream, start_gateway: StartGateway) -> Gateway:
    upstream: Upstream = await script_upstream(answer())
    document = endpoints(upstream, upstream, upstream)
    document["providers"]["p-c"]["api_key"] = "${NOT_SET}"
    document["endpoints"]["a"]["model"] = "org/team/model-a"
    document["endpoints"]["b"]["model"] = "*"
    document["policies"]["unusable"] = {"endpoints": ["c"]}
    document["routes"] = [
        {"match": {"model": "never"}, "policy": "unusable"},
        {"match": {"model": ["house/fast", "gpt-*", "org/*"]}, "policy": "main"},
    ]
    keys = [key_record(), key_record("hw_few", key_id="few", models=("house/*",))]
    return await start_gateway(document, keys)


async def ids(gateway: Gateway, key: str = KEY) -> list[str]:
    body = (await gateway.client(key).get("/v1/models")).json()
    assert body["object"] == "list"
    return [model["id"] for model in body["data"]]


async def test_models_have_names_and_a_way_to_be_served(gateway: Gateway) -> None:
    assert await ids(gateway) == ["house/fast", "org/team/model-a"]


async def test_a_key_sees_its_models_only(gateway: Gateway) -> None:
    assert await ids(gateway, "hw_few") == ["house/fast"]
    assert (await gateway.client("hw_few").get("/v1/models/org/team/model-a")).status_code == 404


@pytest.mark.parametrize(
    "path", ["org/team/model-a", "org%2Fteam%2Fmodel-a", "org/team%2fmodel-a", "org/team/model-a/"]
)
async def test_a_model_with_slashes_in_its_name(gateway: Gateway, path: str) -> None:
    response = await gateway.client().get(f"/v1/models/{path}")
    assert response.json() == {"id": "org/team/model-a", "object": "model", "created": 0, "owned_by": "p-a"}


async def test_a_query_is_no_part_of_the_name(gateway: Gateway) -> None:
    assert (await gateway.client().get("/v1/models/house/fast?x=1")).json()["id"] == "house/fast"


async def test_the_sdk_reads_models(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        assert [model.id async for model in client.models.list()] == ["house/fast", "org/team/model-a"]
        assert (await client.models.retrieve("org/team/model-a")).owned_by == "p-a"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none")


@pytest.mark.parametrize("path", ["/v1/models/none", "/v1/models/c", "/v1/models/never", "/v1/models/%ff%00"])
async def test_an_unknown_model_is_404(gateway: Gateway, path: str) -> None:
    response = await gateway.client().get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert gateway.metric('hatchway_refused_requests_total{reason="model_not_found",status="404"}') == 1


async def test_models_need_a_key(gateway: Gateway) -> None:
    for path in ("/v1/models", "/v1/models/house/fast"):
        assert (await gateway.client(None).get(path)).status_code == 401
    assert gateway.metric('hatchway_refused_requests_total{reason="missing_api_key",status="401"}') == 2


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_no_key(gateway: Gateway, path: str) -> None:
    body: Any = (await gateway.client(None).get(path)).json()
    assert body == {"status": "ok", "policy_version": gateway.pipeline.snapshot.configuration.version}


async def test_operators_paths_are_forwarded(gateway: Gateway) -> None:
    paths = ["/metrics", "/admin", "/admin/api/keys"]
    for path in paths:
        assert (await gateway.client(None).get(path)).status_code == 204
    assert gateway.forwarded == paths


async def test_internal_paths_are_not_reachable_over_tcp(gateway: Gateway) -> None:
    for path in ("/internal/reload", "/internal/health", "/internal/metrics"):
        assert (await gateway.client().get(path)).status_code == 404
