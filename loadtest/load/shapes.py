"""Number of Locust users over time."""

from __future__ import annotations

SHAPES = ("steady", "ramp", "spike", "soak")


def users_at(shape: str, at_s: float, peak: int, seconds: float) -> int | None:
    """Users wanted `at_s` seconds after the start; None when the shape is over.

    Args:
        shape: `steady` and `soak` hold the peak (a soak is a long one), `ramp` grows evenly from 1 to the peak, `spike` holds
            1 user and jumps to the peak for the middle third.
        peak: most users.
        seconds: of the whole shape.
    """
    if at_s >= seconds:
        return None
    if shape == "ramp":
        return 1 + round((peak - 1) * at_s / seconds)
    if shape == "spike":
        return peak if seconds / 3 <= at_s < seconds * 2 / 3 else 1
    return peak
