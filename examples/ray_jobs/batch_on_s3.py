r"""A Ray job that scores the photos of a bucket into the same bucket, and counts what was found.

    .venv/bin/ray job submit --address http://127.0.0.1:8265 -- $PWD/.venv/bin/python $PWD/examples/ray_jobs/batch_on_s3.py \
        s3://bucket/photos s3://bucket/scored --model rtmdet-ins_x_8xb16-300e_coco

The job runs on the cluster: the program must exist there under this path. Without --model it is the embedded demo model. Credentials come
from the nodes' environment. Submit it again after a failure: it continues.
"""

import json
import sys
from collections import Counter

from pyarrow import dataset

from jobs import batch_ray


def main(source: str, output: str, *options: str) -> int:
    """Score the photos; print how many objects of each label were found."""
    status = batch_ray.main([source, "--output", output, *options])
    if status == 0:
        rows = dataset.dataset(f"{output}/rows").to_table(["preds"]).to_pylist()
        labels = Counter(found["label"] for row in rows for found in json.loads(row["preds"])["boxes"])
        print(json.dumps({"photos": len(rows), "found": dict(labels.most_common())}))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
