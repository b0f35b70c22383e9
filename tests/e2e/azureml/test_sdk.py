"""AzureML's own packages talk to the service: `invoke` of azure-ai-ml and `predict` of azureml-mlflow, the endpoint's look-up stubbed.

They pin what this project pins otherwise (certifi, OpenTelemetry, pandas below 3), so they live in a virtual environment of their own:

    python3.11 -m venv .venv-azure && .venv-azure/bin/pip install -r tests/e2e/azureml/requirements.txt
    pytest -m slow tests/e2e/azureml/test_sdk.py          AZURE_SDK_PYTHON names another interpreter
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.request_body import as_body

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("AZURE_SDK_PYTHON", HERE.parents[2] / ".venv-azure" / "bin" / "python"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason=f"there is no {PYTHON}: see the first lines of tests/e2e/azureml/test_sdk.py"
    ),
]


def run(script, *arguments):
    """What a script of the other environment prints, as JSON."""
    command = [str(PYTHON), str(HERE / script), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_azure_ai_ml_invokes(service, photos, tmp_path):
    """`ml_client.online_endpoints.invoke(endpoint_name=…, request_file=…)` of the notebooks."""
    request_file = tmp_path / "sample_request_data.json"
    request_file.write_text(json.dumps(as_body(photos[:2])))
    answers = run("sdk_invoke.py", service.url, "key", request_file)
    assert [image["boxes"][0]["label"] for image in answers] == ["person", "person"]


def test_azureml_mlflow_predicts(service, photos, tmp_path):
    """`get_deploy_client(…).predict(endpoint=…, df=…)`: a frame with a column `boxes`, the swagger asked for with version=3."""
    (tmp_path / "1.jpg").write_bytes(photos[0])
    (tmp_path / "2.jpg").write_bytes(photos[1])
    rows = run("sdk_predict.py", service.url, "key", tmp_path / "1.jpg", tmp_path / "2.jpg")
    assert [row["boxes"][0]["label"] for row in rows] == ["person", "person"]
