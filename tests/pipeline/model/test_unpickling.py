"""Unpickling a `.pth`: files that would run code are refused, damaged ones named."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from pipeline.errors import CheckpointError
from pipeline.model.unpickling import unpickle_tensors


def content(**more):
    """The parts of an mmengine checkpoint: besides tensors, numpy scalars and log history."""
    return {
        "meta": {"epoch": 300, "seed": np.int64(7)},
        "message_hub": {"train/loss": HistoryBuffer(np.array([1.0, 0.5]), np.array([1, 1]))},
        "state_dict": {"weight": torch.zeros(2)},
        **more,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def test_mmengines_types_are_read(path):
    """Tensors, numpy scalars and log history."""
    torch.save(content(), path)
    found = unpickle_tensors(path)
    assert found["meta"] == {"epoch": 300, "seed": 7}
    assert isinstance(found["message_hub"]["train/loss"], HistoryBuffer)
    assert torch.equal(found["state_dict"]["weight"], torch.zeros(2))


class Bomb:
    """Unpickling this creates a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["meta", "state_dict", "message_hub"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip format", "legacy format"])
def test_hostile_pickle_is_refused(tmp_path, path, place, legacy):
    """A file that asks for os.mkdir anywhere is refused by name, and the call is not made."""
    marker = tmp_path / "owned"
    hostile = content()
    hostile[place]["x"] = Bomb(marker)
    torch.save(hostile, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused.*mkdir"):
        unpickle_tensors(path)
    assert not marker.exists()


class Attribute:
    """Unpickling this looks an attribute up, as a log history does, but of something else."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_attribute_access_is_not_a_way_out(path):
    """`getattr` is in every log history; only the four methods of a history can be reached with it."""
    torch.save(content(x=Attribute()), path)
    with pytest.raises(CheckpointError, match=r"refused.*__init__"):
        unpickle_tensors(path)


def test_plain_pickle_is_refused(tmp_path, path):
    """A bare pickle under the name of a checkpoint is refused as well."""
    marker = tmp_path / "owned"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(CheckpointError):
        unpickle_tensors(path)
    assert not marker.exists()


def test_truncated_file_is_named(path):
    """Such as one whose download was interrupted."""
    torch.save(content(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        unpickle_tensors(path)


@pytest.mark.parametrize("data", [b"abc" * 99, b"]a.", b"\x80\x02s."], ids=["text", "no mark", "empty stack"])
def test_bytes_that_are_no_pickle_are_named(path, data):
    """torch's unpickler raises IndexError and others on these."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        unpickle_tensors(path)


def test_zip_without_pickle_is_named(path):
    """torch reads a zip file, but finds no pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        unpickle_tensors(path)


def test_something_else_than_a_dict_is_refused(path):
    """As a whole tensor."""
    torch.save(torch.zeros(2), path)
    with pytest.raises(CheckpointError, match=r"model\.pth: expected a dict of tensors, found Tensor"):
        unpickle_tensors(path)
