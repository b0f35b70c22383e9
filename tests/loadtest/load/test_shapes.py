"""Number of Locust users over time."""

import pytest

from loadtest.load.shapes import users_at


@pytest.mark.parametrize(
    ("shape", "users"), [("steady", [10, 10, 10]), ("soak", [10, 10, 10]), ("ramp", [1, 6, 10]), ("spike", [1, 10, 1])]
)
def test_shapes(shape, users):
    """Users at the start, in the middle and near the end of a minute; then it is over."""
    assert [users_at(shape, at, 10, 60) for at in (0, 31, 59.9)] == users
    assert users_at(shape, 60, 10, 60) is None
