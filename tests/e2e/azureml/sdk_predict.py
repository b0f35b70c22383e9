"""`predict` of azureml-mlflow's deployment client, with the look-up of the endpoint and its keys stubbed; nothing else.

python sdk_predict.py URL KEY PHOTO...     prints the frame that predict returns as JSON. Runs in the virtual environment of test_sdk.py.
"""

import base64
import sys
from types import SimpleNamespace

import pandas as pd
from azureml.mlflow.deploy.deployment_client import AzureMLDeploymentClient

url, key, *photos = sys.argv[1:]
client = AzureMLDeploymentClient.__new__(AzureMLDeploymentClient)  # its __init__ looks for a workspace
client._mir_client = SimpleNamespace(_list_keys=lambda _: SimpleNamespace(primary_key=key))
endpoint = {
    "name": "endpoint",
    "properties": {"authMode": "Key", "scoringUri": f"{url}/score", "swaggerUri": f"{url}/swagger.json"},
}
client._get_endpoint = lambda _: endpoint
images = [base64.encodebytes(open(photo, "rb").read()).decode() for photo in photos]  # noqa: SIM115 (as the notebooks do)
frame = client.predict(endpoint="endpoint", df=pd.DataFrame({"image": images, "id": range(len(images))}))
print(frame.to_json(orient="records"))
