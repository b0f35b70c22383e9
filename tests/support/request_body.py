"""Requests as clients send them."""

import base64


def as_body(images, **params) -> dict:
    """A request body for encoded images (bytes), URLs or base64 (str)."""
    data = [base64.b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
    return {"input_data": {"columns": ["image"], "index": list(range(len(data))), "data": data}, "params": params}
