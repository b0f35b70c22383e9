"""CPU time between two measurements."""

from loadtest.planning.costs import spent


def test_what_is_new_counts_from_its_start():
    """A decoder that was replaced in between, for instance."""
    assert spent({1: ("gcs", 2.0)}, {1: ("gcs", 2.5), 2: ("decoders", 0.25)}) == {"gcs": 0.5, "decoders": 0.25}
