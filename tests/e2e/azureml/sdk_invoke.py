"""`MLClient.online_endpoints.invoke` of azure-ai-ml, with the look-up of the endpoint and its keys stubbed; nothing else.

python sdk_invoke.py URL KEY REQUEST_FILE     prints what invoke returns. Runs in the virtual environment of test_sdk.py.
"""

import sys
from types import SimpleNamespace

from azure.ai.ml import MLClient
from azure.ai.ml.entities import EndpointAuthKeys
from azure.core.credentials import AccessToken

url, key, request_file = sys.argv[1:]
credential = SimpleNamespace(get_token=lambda *_, **__: AccessToken("x", 2**40))
client = MLClient(credential, "00000000-0000-0000-0000-000000000000", "group", "workspace")
endpoints = client.online_endpoints
found = SimpleNamespace(properties=SimpleNamespace(auth_mode="key", scoring_uri=f"{url}/score"))
endpoints._online_operation = SimpleNamespace(get=lambda **_: found)
endpoints._get_online_credentials = lambda **_: EndpointAuthKeys(primary_key=key, secondary_key=key)
print(endpoints.invoke(endpoint_name="endpoint", request_file=request_file))
