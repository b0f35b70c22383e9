"""The image that the readiness check sends through every stage: a PNG of 32 x 32 pixels of one colour."""

import base64

PROBE_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAALUlEQVR4nGMsirJhoCVgoqnpoxaMWjBqwagFoxaMWjBqwagFoxaMWjBqARUBABAYAUhB"
    "/V/PAAAAAElFTkSuQmCC"
)
