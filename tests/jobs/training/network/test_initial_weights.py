"""Weights to start from: class channels follow their names, not their places."""

import pytest
import torch

from jobs.training.network.initial_weights import load_what_fits
from pipeline.model.checkpoints import Checkpoint, save_safetensors
from pipeline.model.spec import build_network, nano_spec

pytestmark = pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast")
CLASSES = ("cat", "dog", "person")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model of three classes whose class channels differ from each other."""
    torch.manual_seed(0)
    state = build_network(nano_spec(CLASSES)).state_dict()
    for row in range(3):
        state["bbox_head.rtm_cls.0.bias"][row] = float(row)
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_safetensors(Checkpoint(nano_spec(CLASSES), state), path)
    return path


def loaded(file, classes):
    network = build_network(nano_spec(classes))
    torch.nn.init.constant_(network.bbox_head.rtm_cls[0].bias, -4.0)
    return network, load_what_fits(network, file, classes)[0]


def test_classes_in_another_order_keep_their_channels(file):
    network, told = loaded(file, CLASSES[::-1])
    assert network.bbox_head.rtm_cls[0].bias.tolist() == [2.0, 1.0, 0.0]
    assert told.endswith("Class channels: person, dog, cat from the file by name; fresh: none.")


def test_one_class_more_starts_at_the_mean(file):
    """Of the file's class channels, weights and biases; the others keep theirs."""
    network, told = loaded(file, ("bird", "person"))
    assert network.bbox_head.rtm_cls[0].bias.tolist() == [1.0, 2.0]
    given = build_network(nano_spec(CLASSES))
    load_what_fits(given, file, CLASSES)
    weight, rows = network.bbox_head.rtm_cls[1].weight, given.bbox_head.rtm_cls[1].weight
    assert torch.equal(weight[1], rows[2])
    torch.testing.assert_close(weight[0], rows.mean(dim=0))
    assert told.endswith(
        "Class channels: person from the file by name; fresh: bird (from the mean of the file's class channels)."
    )


def test_the_reordered_network_answers_alike(file):
    """Scores of the file's own network, with its channels in the new order."""
    image = torch.rand(1, 3, 64, 64)
    own, _ = loaded(file, CLASSES)
    other, _ = loaded(file, CLASSES[::-1])
    with torch.inference_mode():
        expected, scores = (network.bbox_head(network.extract_feat(image))[0] for network in (own, other))
    for first, second in zip(expected, scores, strict=True):
        torch.testing.assert_close(second, first.flip(1))


def test_channels_without_names_are_fresh(tmp_path):
    """Their places say nothing: all start at their mean."""
    state = build_network(nano_spec(CLASSES)).state_dict()
    state["bbox_head.rtm_cls.0.bias"][:] = torch.tensor([0.0, 1.0, 5.0])
    torch.save(state, tmp_path / "bare.pth")
    network, told = loaded(tmp_path / "bare.pth", CLASSES)
    assert network.bbox_head.rtm_cls[0].bias.tolist() == [2.0] * 3
    assert told.endswith(
        "all fresh (from the mean of the file's class channels), the file does not say which classes its channels are."
    )


def test_a_file_whose_class_channels_do_not_fit(tmp_path):
    """They start as the network's own initialisation leaves them."""
    state = build_network(nano_spec(CLASSES)).state_dict()
    without = {name: value for name, value in state.items() if "rtm_cls" not in name}
    torch.save(without, tmp_path / "bare.pth")
    network, told = loaded(tmp_path / "bare.pth", CLASSES)
    assert network.bbox_head.rtm_cls[0].bias.tolist() == [-4.0] * 3
    assert "all fresh, the file" in told


def test_what_the_file_does_not_have_stays_and_is_named(tmp_path):
    """As of a detector without masks."""
    state = build_network(nano_spec(CLASSES)).state_dict()
    boxes = {name: value for name, value in state.items() if not name.startswith(("bbox_head.rtm_kernel", "bbox_head.mask_head"))}
    torch.save(boxes, tmp_path / "boxes.pth")
    network, told = loaded(tmp_path / "boxes.pth", CLASSES)
    layers = "bbox_head.mask_head, bbox_head.rtm_kernel"
    assert told.startswith(f"boxes.pth: {len(boxes)} of {len(state)} tensors loaded; fresh: {layers}.\n")
    assert torch.equal(network.backbone.stem[0].conv.weight, state["backbone.stem.0.conv.weight"])


def test_names_that_are_not_those_of_the_channels_are_refused(tmp_path):
    state = build_network(nano_spec(CLASSES)).state_dict()
    save_safetensors(Checkpoint(nano_spec(CLASSES[:2]), state), tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"the file names 2 classes for the 3 channels of bbox_head\.rtm_cls"):
        loaded(tmp_path / "two.safetensors", CLASSES)
