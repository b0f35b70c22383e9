"""Label Studio ML backend that uses the scoring service for pre-annotations, in one file.

    pip install ./client 'label-studio-ml @ git+https://github.com/HumanSignal/label-studio-ml-backend'
    SCORING_URL=http://127.0.0.1:8000 LABEL_STUDIO_URL=… LABEL_STUDIO_API_KEY=… python examples/label_studio.py

Then add http://127.0.0.1:9090 in the project's settings under Model (Label Studio refuses addresses of its own machine unless it is started
with ML_BLOCK_LOCAL_IP=false). Run with Label Studio 1.23.2, 2026-11-29. The project needs <Image name="image" value="$image"/> and
<PolygonLabels name="label" toName="image"> with the model's classes.
"""

import logging
import os
from functools import cache
from typing import Any

from rtmdet_ins_client import Client, Result, ScoringError

OF_ONE_PHOTO = (413, 422)
"""Statuses for a photo that cannot be scored; with any other error the next photo would fail, too."""


def regions(result: Result, from_name: str, to_name: str) -> list[dict[str, Any]]:
    """Polygon regions as Label Studio imports them: one for each outer ring, points in percent."""
    width, height = result.size
    return [
        {
            "type": "polygonlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "score": found.score,
            "value": {
                "points": [[100 * x, 100 * y] for x, y in zip(ring[::2], ring[1::2], strict=True)],
                "polygonlabels": [found.label],
                "closed": True,
            },
        }
        for found in result.objects
        for ring in found.polygon
    ]


@cache
def client() -> Client:
    """One for all calls, which keeps its connections. A photo takes at most 45 s: Label Studio waits for 100 s (ML_TIMEOUT_PREDICT)."""
    return Client(os.environ["SCORING_URL"], os.environ.get("SCORING_KEY"), deadline_s=20, patience_s=20)


try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError:  # only the backend needs it
    LabelStudioMLBase = object


class ScoringBackend(LabelStudioMLBase):  # type: ignore[misc, unused-ignore]
    """Predicts with the service at SCORING_URL, with the key in SCORING_KEY if it needs one."""

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **_: Any) -> list[Any]:  # noqa: ARG002
        """One prediction for each task of Label Studio; an empty list, which it takes as none, for a bad photo among others: all selected
        tasks come in one call, and an exception would leave all of them without predictions."""
        from_name, to_name, value = self.get_first_tag_occurence("PolygonLabels", "Image")
        predictions: list[Any] = []
        for task in tasks:
            path = self.get_local_path(task["data"][value], task_id=task["id"])
            try:
                found = regions(client().score(path, closed=False), from_name, to_name)
            except ScoringError as error:
                if len(tasks) == 1 or error.status not in OF_ONE_PHOTO:
                    raise
                logging.warning("no prediction for task %s: %s", task["id"], error)
                predictions.append([])
            else:
                predictions.append({"result": found, "score": max((region["score"] for region in found), default=0.0)})
        return predictions


if __name__ == "__main__":
    from label_studio_ml.api import init_app

    init_app(model_class=ScoringBackend).run(host="127.0.0.1", port=int(os.environ.get("PORT", "9090")))
