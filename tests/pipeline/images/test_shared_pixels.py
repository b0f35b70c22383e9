"""The memory through which decoders return pixels: shared, and of a size that cannot change."""

import pytest

from pipeline.images.decoder_options import MAX_SIDE
from pipeline.images.shared_pixels import make_shared_pixels, map_shared_pixels


def test_what_one_side_writes_the_other_reads():
    """Also when the file is closed; the largest image fits."""
    with make_shared_pixels() as file:
        writer, reader = map_shared_pixels(file.fileno()), map_shared_pixels(file.fileno())
    assert writer.size == MAX_SIDE * MAX_SIDE * 3
    writer[-3:] = 1, 2, 3
    assert reader[-3:].tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [0, MAX_SIDE * MAX_SIDE * 4])
def test_the_size_is_sealed(size):
    """A decoder that was taken over cannot take the memory away."""
    with make_shared_pixels() as file, pytest.raises(PermissionError):
        file.truncate(size)
