"""Automatic annotation in CVAT with the scoring service: a serverless (Nuclio) function in one file.

function.yaml, beside this file, names the labels and the service's URL and says how to deploy it. It needs neither torch nor a GPU.
Not yet run in a CVAT installation; the shapes are tested (tests/test_examples.py).
"""

import base64
import json
import os
from typing import Any

from rtmdet_ins_client import Client, Result


def shapes(result: Result) -> list[dict[str, Any]]:
    """CVAT's polygons: one for each outer ring, points x1 y1 x2 y2 … in pixels."""
    width, height = result.size
    return [
        {
            "confidence": str(found.score),
            "label": found.label,
            "points": [value * (height if i % 2 else width) for i, value in enumerate(ring)],
            "type": "polygon",
        }
        for found in result.objects
        for ring in found.polygon
    ]


def init_context(context: Any) -> None:
    """Nuclio calls this once, when the function starts. A photo takes at most 45 s, less than function.yaml's `eventTimeout`."""
    context.user_data.client = Client(os.environ["SCORING_URL"], os.environ.get("SCORING_KEY"), deadline_s=20, patience_s=20)


def handler(context: Any, event: Any) -> Any:
    """Nuclio calls this for each photo. CVAT sends base64 and, where the user set one, a threshold."""
    photo = base64.b64decode(event.body["image"])
    threshold = event.body.get("threshold")
    result = context.user_data.client.score(photo, score_threshold=0.5 if threshold is None else float(threshold), closed=False)
    return context.Response(body=json.dumps(shapes(result)), headers={}, content_type="application/json", status_code=200)
