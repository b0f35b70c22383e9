"""`/swagger.json`: valid documents of both versions, under the names that AzureML's clients know."""

import openapi_spec_validator
import pytest

from tests.support.fake_ingress import FakeIngress, client_for


@pytest.fixture
async def client():
    async with client_for(FakeIngress()) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "key", "version"), [("", "swagger", "2.0"), ("?version=2", "swagger", "2.0"), ("?version=3", "openapi", "3.0.3")]
)
async def test_valid_in_its_version(client, query, key, version):
    """Swagger 2.0 unless 3 is asked for."""
    document = (await client.get(f"/swagger.json{query}")).json()
    assert document[key] == version
    openapi_spec_validator.validate(document)
    post = document["paths"]["/score"]["post"]
    assert post["operationId"] == "RunMLService"
    schemas = document["definitions"] if key == "swagger" else document["components"]["schemas"]
    assert {"ServiceInput", "ServiceOutput", "ErrorResponse"} <= set(schemas)
    assert set(schemas["ServiceInput"]["properties"]) == {"input_data", "params"}
    assert schemas["ScoreParams"]["properties"]["score_threshold"]["maximum"] == 1


async def test_another_version(client):
    """404 that says what there is."""
    response = await client.get("/swagger.json?version=9")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert "version=3" in response.json()["message"]


async def test_openapi_31_is_valid_too(client):
    """The validator raises for an invalid document."""
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document)
