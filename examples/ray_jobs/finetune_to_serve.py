r"""Fine-tune on your photos, then put the result into the running service.

    .venv/bin/python examples/ray_jobs/finetune_to_serve.py /data/train.json /data/photos /data/runs/monday serve_config.yaml --steps 300

Options after the configuration are those of jobs.finetune, such as `--val-share 0.2`. On a cluster, with paths that every node sees:

    .venv/bin/ray job submit --address http://127.0.0.1:8265 --entrypoint-num-gpus 1 -- \
        $PWD/.venv/bin/python $PWD/examples/ray_jobs/finetune_to_serve.py /data/train.json …

For a service with keys, add `--key-env NAME` to the call of jobs.deploy.
"""

import sys

from jobs import deploy, finetune


def main(annotations: str, photos: str, work_dir: str, config: str, *options: str) -> int:
    """Train, then deploy the model if the training succeeded."""
    status = finetune.main(["--train", annotations, "--train-images", photos, "--work-dir", work_dir, *options])
    return status or deploy.main([f"{work_dir}/final.safetensors", "--config", config])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
