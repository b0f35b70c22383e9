"""How NVIDIA Triton is asked: the JSON of tensors that its HTTP endpoint takes, and the contract's answer from what it gives.

contract's request ─▶ triton_request ─▶ POST /v2/models/rtmdet-ins/infer ─▶ triton_answer ─▶ contract's answer
"""

from __future__ import annotations

import orjson

from benchmarks.peers.scoring import images_in
from loadtest.load.traffic import Wire

TRITON_MODEL = "rtmdet-ins"


def triton_request(body: bytes) -> bytes:
    """One tensor of base64 texts, an image a row."""
    texts = images_in(body)
    return orjson.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}]})


def triton_answer(body: bytes) -> bytes:
    """The rows of the only output, each one image's JSON, as a list; what is no such answer stays as it is."""
    try:
        (output,) = orjson.loads(body)["outputs"]
        return b"[" + ",".join(output["data"]).encode() + b"]"
    except (ValueError, KeyError, TypeError):
        return body


TRITON = Wire(f"/v2/models/{TRITON_MODEL}/infer", triton_request, triton_answer)
