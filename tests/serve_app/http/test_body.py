"""The budget of all bodies together; how bodies are read is tested with the routes."""

from collections import Counter
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Overloaded
from serve_app.http.body import BodyBudget

BODIES = st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 120), st.booleans()), max_size=12)


@given(BODIES, st.floats(0, 1))
def test_a_body_is_refused_if_the_budget_or_the_share_of_its_key_is_used_up(bodies, share):
    """And only then. A key may always send one body of the largest size; a body that ended, or was refused halfway, holds nothing."""
    budget = BodyBudget(max_bytes=200, max_bodies=10, largest=60, refusal=lambda: Overloaded("full"))
    held: Counter[str] = Counter()
    with ExitStack() as arriving:
        for caller, size, goes_on in bodies:
            counted = max(size, 200 // 10)
            most = max(int(share * 200), 60) if caller else 200
            room = held.total() + counted <= 200 and held[caller] + counted <= most
            with ExitStack() as body:
                try:
                    hold = body.enter_context(budget.share(caller, share))
                    for received in (size // 2, size):
                        hold(received)
                except Overloaded:
                    assert not room
                    continue
                assert room
                if goes_on:
                    held[caller] += counted
                    arriving.push(body.pop_all())
    with budget.share("a", 0.0) as hold:
        hold(60)
