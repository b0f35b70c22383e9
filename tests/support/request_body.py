"""Images as file bytes, and requests that hold them."""

import base64
import io

from PIL import Image


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    """An image as file bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def as_body(images, **params) -> dict:
    """A request body for encoded images (bytes), URLs or base64 (str)."""
    data = [base64.b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
    return {"input_data": {"columns": ["image"], "index": list(range(len(data))), "data": data}, "params": params}
