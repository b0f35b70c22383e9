"""The online notebook and the CLI script of AzureML, call by call, with URL and key as all that changed."""

import base64
import importlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import requests

from tests.support.request_body import as_body


def draw(image, threshold=0.3):
    """What the notebooks' visualiser does with one image's answer: the lines that it plots, in fractions."""
    lines = []
    for detection in image["boxes"]:
        if detection["score"] < threshold:
            continue
        box = detection["box"]
        assert 0 <= box["topX"] < box["bottomX"] <= 1
        assert 0 <= box["topY"] < box["bottomY"] <= 1
        assert detection["label"]
        lines.append(np.array(detection["polygon"][0]).reshape(-1, 2))
    return lines


def test_the_online_notebook(service, photos, tmp_path):
    """Sample request in a file, `urllib` with the headers of the consume tab, polygons drawn as lines."""
    request_file = tmp_path / "sample_request_data.json"
    data = [base64.encodebytes(photo).decode("utf-8") for photo in photos[:2]]
    request_file.write_text(json.dumps({"input_data": {"columns": ["image"], "index": [0, 1], "data": data}, "params": {}}))
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key", "azureml-model-deployment": "demo"}
    asked = urllib.request.Request(f"{service.url}/score", request_file.read_bytes(), headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        answers = json.loads(response.read())
    assert len(answers) == 2
    lines = [line for image in answers for line in draw(image)]
    assert lines
    assert all((line[0] == line[-1]).all() for line in lines), "a line that is not closed leaves a gap"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: json.dumps(body).encode(), id="az ml online-endpoint invoke --request-file"),
        pytest.param(lambda body: b"\xef\xbb\xbf" + json.dumps(body).encode(), id="a file that PowerShell wrote"),
        pytest.param(
            lambda body: json.dumps(
                body
                | {
                    "input_data": {
                        "columns": ["image", "id"],
                        "index": [0],
                        "data": [[body["input_data"]["data"][0], 1]],
                    }
                }
            ).encode(),
            id="a data frame with another column",
        ),
    ],
)
def test_bodies_that_clients_send(service, photo, change):
    """All give the same answer."""
    headers = {"content-type": "application/json"}
    response = requests.post(f"{service.url}/score", data=change(as_body([photo])), headers=headers, timeout=60)
    assert response.status_code == 200
    assert len(draw(response.json()[0])) == 1


def test_ids_that_azures_clients_send(service, photo):
    """azure-core puts an x-ms-client-request-id on every request, and people look for it."""
    headers = {"x-ms-client-request-id": "11111111-2222-3333-4444-555555555555"}
    response = requests.post(f"{service.url}/score", json=as_body([photo]), headers=headers, timeout=60)
    assert response.headers["x-ms-client-request-id"] == headers["x-ms-client-request-id"]
    assert response.headers["x-ms-request-id"] == headers["x-ms-client-request-id"]


def test_swagger_2_describes_the_calls(service, photo):
    """All of a call is taken from the document: path, method, and schemas that the body and the answers must match.

    Not by bravado, a client for Swagger 2.0: it installs rfc3987-syntax, which adds a second to the start of every Ray process.
    """
    document = requests.get(f"{service.url}/swagger.json", timeout=10).json()
    calls = {
        call["operationId"]: (method, path, call)
        for path, methods in document["paths"].items()
        for method, call in methods.items()
    }

    def check(value, schema):
        jsonschema.Draft4Validator(schema | {"definitions": document["definitions"]}).validate(value)

    method, path, call = calls["RunMLService"]
    (payload,) = call["parameters"]
    with pytest.raises(jsonschema.ValidationError):
        check({"input_data": 1}, payload["schema"])
    for image, status, described in ((photo, 200, "200"), (b"no image", 422, "default")):
        body = as_body([image])
        check(body, payload["schema"])
        answer = requests.request(method, service.url + path, json=body, timeout=60)
        assert answer.status_code == status
        check(answer.json(), call["responses"][described]["schema"])
        if status == 200:
            assert len(draw(answer.json()[0])) == 1
    method, path, _ = calls["ServiceHealthCheck"]
    assert requests.request(method, service.url + path, timeout=10).text == "Healthy"


def test_a_client_generated_from_openapi_3(service, photo, tmp_path, monkeypatch):
    """openapi-python-client writes Python, which is imported and called."""
    document = tmp_path / "openapi.json"
    document.write_text(requests.get(f"{service.url}/swagger.json?version=3", timeout=10).text)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")  # it formats with ruff
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(document), "--meta", "none"]
    subprocess.run([*command, "--output-path", str(tmp_path / "scoring_client")], check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    client = importlib.import_module("scoring_client.client").AuthenticatedClient(service.url, "key", timeout=60)
    call = importlib.import_module("scoring_client.api.score.run_ml_service")
    body = importlib.import_module("scoring_client.models.service_input").ServiceInput.from_dict(as_body([photo]))
    (image,) = call.sync(client=client, body=body)
    assert len(draw(image.to_dict())) == 1
    refused = call.sync(client=client, body=type(body).from_dict(as_body([b"no image"])))
    assert refused.code in ("image_not_decodable", "unsupported_image_format")
    client.get_httpx_client().close()
