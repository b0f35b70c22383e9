"""The tiny real image that readiness sends through every stage: a 32 x 32 PNG of one colour, made with Pillow."""

import base64

PROBE_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAALUlEQVR4nGMsirJhoCVgoqnpoxaMWjBqwagFoxaMWjBqwagFoxaMWjBqARUBABAYAUhB"
    "/V/PAAAAAElFTkSuQmCC"
)
