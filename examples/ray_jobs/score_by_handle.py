"""A Ray job that scores the `*.jpg` of a folder by the handle of the running service: no HTTP, no base64, typed results.

    .venv/bin/ray job submit --address http://127.0.0.1:8265 -- $PWD/.venv/bin/python $PWD/examples/ray_jobs/score_by_handle.py /data/photos

The job runs on the cluster: program and photos must exist there under these paths. It prints a JSON line for each photo.
"""

import json
import sys
from pathlib import Path

import ray

from deployments.params import ScoreParams
from jobs.score_by_handle import score

AT_ONCE = 16


def main(folder: str) -> None:
    """Score the photos and print what was found."""
    ray.init(address="auto", log_to_driver=False)
    photos = sorted(Path(folder).glob("*.jpg"))
    for first in range(0, len(photos), AT_ONCE):
        some = photos[first : first + AT_ONCE]
        answers = score([photo.read_bytes() for photo in some], ScoreParams(on_error="isolate"))
        for photo, answer in zip(some, answers, strict=True):
            found = [(item.label, round(item.score, 3)) for item in answer.objects]
            print(json.dumps({"file_name": photo.name, "found": found, "error": answer.fault.code if answer.fault else None}))


if __name__ == "__main__":
    main(sys.argv[1])
