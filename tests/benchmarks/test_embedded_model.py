"""The embedded model's recipe: weights between two models, batch-norm statistics that fit them, and folded batch norms restored."""

import pytest
import torch

from benchmarks.embedded_model import merge, restore, soup
from benchmarks.embedded_model.batch_norm import measure_batch_norms, restore_batch_norms
from pipeline.errors import CheckpointError
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors
from pipeline.model.spec import build_network, nano_spec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Files of two nano models with different weights."""
    folder, paths = tmp_path_factory.mktemp("pair"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(folder / f"{seed}.safetensors")
        spec = nano_spec(("ball", "egg"), input_size=64)
        save_safetensors(Checkpoint(spec, build_network(spec).state_dict()), paths[-1])
    return paths


def test_command_line(tiny_coco, pair, tmp_path, capsys):
    """A quarter of the way lies at a quarter; a layer kept for the tuned model is the tuned one."""
    out = tmp_path / "merged.safetensors"
    photos = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--photos", "8"]
    files = ["--base", str(pair[0]), "--tuned", str(pair[1]), "--out", str(out), "--only-tuned", "bbox_head.mask_head"]
    assert merge.main([*photos, *files, "--share", "0.25", "--image-size", "64"]) == 0
    assert "25% tuned" in capsys.readouterr().out
    base, tuned, merged = (load_checkpoint(path).state_dict for path in (*pair, out))
    name, kept = "backbone.stem.0.conv.weight", "bbox_head.mask_head.projection.weight"
    torch.testing.assert_close(merged[name], 0.75 * base[name] + 0.25 * tuned[name], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(merged[kept], tuned[kept])
    assert not torch.equal(merged["backbone.stem.0.bn.running_mean"], tuned["backbone.stem.0.bn.running_mean"])


def test_soup(pair, tmp_path):
    """A quarter of one and three of the other, statistics too; scores lower than the average's."""
    out = tmp_path / "soup.safetensors"
    parts = [f"1:{pair[0]}", f"3:{pair[1]}"]
    assert soup.main([*parts, "--class-bias", "-0.5", "--input-size", "96", "--out", str(out)]) == 0
    first, second, mixed = (load_checkpoint(path) for path in (*pair, out))
    assert mixed.spec.input_size == 96
    for name, value in mixed.state_dict.items():
        lower = 0.5 if "rtm_cls" in name and name.endswith("bias") else 0.0
        expected = 0.25 * first.state_dict[name] + 0.75 * second.state_dict[name] - lower
        if value.is_floating_point():
            torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3)


def test_statistics_are_those_of_the_photos():
    """After measuring, each layer's own output on the same photos has mean 0 and variance 1 before weight and bias."""
    torch.manual_seed(0)
    network = build_network(nano_spec())
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    measure_batch_norms(network, [{"inputs": [image]}])
    seen = []
    network.backbone.stem[0].bn.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        network.extract_feat(network.data_preprocessor({"inputs": [image]}, training=False)["inputs"])
    assert seen[0].mean().item() == pytest.approx(0, abs=1e-2)
    assert seen[0].var().item() == pytest.approx(1, abs=0.1)
    assert not network.training


@pytest.mark.parametrize("wrong", [["--photos", "0"], ["--share", "1.5"], ["--image-size", "100"]], ids=" ".join)
def test_wrong_numbers_are_refused(tiny_coco, pair, tmp_path, capsys, wrong):
    photos = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos")]
    files = ["--base", str(pair[0]), "--tuned", str(pair[1]), "--out", str(tmp_path / "merged.safetensors")]
    with pytest.raises(SystemExit) as stop:
        merge.main([*photos, *files, *wrong])
    assert stop.value.code == 2
    assert "--photos 1 or more" in capsys.readouterr().err


def test_different_networks_are_refused(pair):
    """The message names the layers; taken from the tuned model alone, they are no hindrance."""
    torch.manual_seed(2)
    spec = nano_spec(("ball", "egg", "cube"), input_size=64)
    base, tuned = load_checkpoint(pair[0]), Checkpoint(spec, build_network(spec).state_dict())
    with pytest.raises(CheckpointError, match=r"differ in bbox_head\.rtm_cls: nothing to average there"):
        merge.merge(base, tuned, 0.5, [])
    batch = {"inputs": [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)]}
    merged = merge.merge(base, tuned, 0.5, [batch], ["bbox_head.rtm_cls"])
    assert merged.spec.classes == ("ball", "egg", "cube")
    name, fresh = "backbone.stem.0.conv.weight", "bbox_head.rtm_cls.0.bias"
    torch.testing.assert_close(merged.state_dict[name], (base.state_dict[name] + tuned.state_dict[name]) / 2)
    torch.testing.assert_close(merged.state_dict[fresh], tuned.state_dict[fresh])


def test_wrong_names_are_refused(tiny_coco, pair, tmp_path, capsys):
    """A layer that is none, and a result that could not be written or read, before the work."""
    photos = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--photos", "8"]
    files = ["--base", str(pair[0]), "--tuned", str(pair[1]), "--image-size", "64"]
    assert merge.main([*photos, *files, "--out", str(tmp_path / "m.safetensors"), "--only-tuned", "nosuch"]) == 2
    assert "--only-tuned nosuch: the network has no such layer" in capsys.readouterr().err
    for out in (tmp_path / "nosuch" / "m.safetensors", tmp_path / "m.pth"):
        with pytest.raises(SystemExit):
            merge.main([*photos, *files, "--out", str(out)])
        assert "--out is a .safetensors file in a folder that exists" in capsys.readouterr().err


def test_restored_from_the_command_line(tiny_coco, pair, tmp_path, capsys):
    """A checkpoint that any `--init-weights` takes."""
    out = tmp_path / "restored.safetensors"
    photos = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--photos", "8"]
    assert restore.main([*photos, "--base", str(pair[0]), "--image-size", "64", "--out", str(out)]) == 0
    assert "batch norms restored" in capsys.readouterr().out
    name = "backbone.stem.0.bn.running_mean"
    assert not torch.equal(load_checkpoint(out).state_dict[name], load_checkpoint(pair[0]).state_dict[name])


def test_restored_batch_norms_change_no_output():
    """Statistics become what the layer really sees; what the network answers stays."""
    torch.manual_seed(0)
    network = build_network(nano_spec())
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)

    def answer():
        with torch.inference_mode():
            inputs = network.data_preprocessor({"inputs": [image]}, training=False)["inputs"]
            return network.bbox_head(network.extract_feat(inputs))

    before = answer()
    assert restore_batch_norms(network, [{"inputs": [image]}]) > 100
    assert network.backbone.stem[0].bn.running_mean.abs().max() > 0
    for old, new in zip([*before[0], *before[1], before[3]], [*(after := answer())[0], *after[1], after[3]], strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)


def test_batch_norms_are_restored_on_the_device_of_the_network():
    """The meta device refuses what mixes devices, as a GPU does."""
    network = build_network(nano_spec()).to("meta")
    assert restore_batch_norms(network, [{"inputs": [torch.zeros(3, 64, 64, dtype=torch.uint8)]}]) > 100
    assert network.backbone.stem[0].bn.running_mean.device.type == "meta"
