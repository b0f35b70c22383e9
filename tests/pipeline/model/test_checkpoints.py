"""Reading and writing weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from pipeline.model.checkpoints import FORMAT, Checkpoint, load_checkpoint, load_weights, save_safetensors
from pipeline.model.spec import OFFICIAL_NAMES, build_network, nano_spec, official_spec

SHIPPED = Path(__file__).parents[3] / "pipeline" / "model" / "weights" / "rtmdet-ins_nano_person.safetensors"


@pytest.fixture(scope="module")
def nano():
    """A nano network with fresh weights."""
    torch.manual_seed(0)
    spec = nano_spec(input_size=320)
    return Checkpoint(spec, build_network(spec).state_dict())


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch):
    """The smallest of the official networks and nano: a file's size is found by building one after the other."""
    monkeypatch.setattr("pipeline.model.spec.OFFICIAL_NAMES", OFFICIAL_NAMES[:1])


def pipeline_source(width, height):
    """Source as mmengine writes it into a checkpoint."""
    resize = f"dict(keep_ratio=True, scale=({width}, {height}), type='Resize')"
    pad = f"dict(pad_val=dict(img=(114, 114, 114)), size=({width}, {height}), type='Pad')"
    return f"test_pipeline = [dict(type='LoadImageFromFile'), {resize}, {pad}, dict(type='PackDetInputs')]"


def released(state_dict, **more):
    """The structure of an OpenMMLab release: meta with configuration source, log history, numpy scalars, averages."""
    history = HistoryBuffer(np.array([1.0, 0.5]), np.array([1, 1]))
    return {
        "meta": {
            "cfg": f"import os; os.abort()  # Python source: must never run\n{pipeline_source(640, 640)}",
            "dataset_meta": {"CLASSES": ("person",), "PALETTE": [(220, 20, 60)]},
            "mmdet_version": "3.0.0rc3",
            "epoch": 300,
            "seed": np.int64(7),
        },
        "message_hub": {
            "log_scalars": {"train/loss": history},
            "runtime_info": {"iter": np.int64(3), "lr": np.float64(1e-3), "ok": np.bool_(True)},
            "resumed_keys": {"train/loss": True},
        },
        "state_dict": state_dict,
        "ema_state_dict": {"steps": torch.tensor(9)}
        | {f"module.{k}": v * 0 for k, v in state_dict.items() if v.is_floating_point()},
        **more,
    }


def saved(content, path):
    torch.save(content, path)
    return path


def test_safetensors_come_back(nano, tmp_path):
    """Name, classes, input size, configuration and weights survive; weights within half precision."""
    path = tmp_path / "model.safetensors"
    save_safetensors(nano, path)
    again = load_checkpoint(path)
    assert again.spec == nano.spec
    assert load_weights(path).classes == nano.spec.classes
    for name, value in again.state_dict.items():
        torch.testing.assert_close(value, nano.state_dict[name].to(value.dtype), rtol=1e-3, atol=1e-6)
    again.network()


def test_a_file_that_is_written_anew_stays_whole(nano, tmp_path, monkeypatch):
    """Who reads the old one goes on, and a full disk leaves it as it was."""
    path = tmp_path / "model.safetensors"
    save_safetensors(nano, path)
    before = path.stat().st_ino
    save_safetensors(nano, path)
    assert path.stat().st_ino != before

    def full(path, _):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_safetensors(nano, path)
    load_checkpoint(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_safetensors_may_be_read_by_whoever_may_read_files(nano, tmp_path):
    """A service is often another user than who trained."""
    path, plain = tmp_path / "model.safetensors", tmp_path / "plain"
    save_safetensors(nano, path)
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_safetensors_are_half_precision(nano, tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(nano, path)
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert path.stat().st_size < 3.2e6


def test_weights_too_large_for_half_stay_float32(nano, tmp_path):
    """float16 ends at 65504: such a tensor must neither become infinite nor cost the whole result."""
    name = "bbox_head.rtm_cls.0.weight"
    large = Checkpoint(nano.spec, nano.state_dict | {name: nano.state_dict[name] + 1e6})
    save_safetensors(large, tmp_path / "model.safetensors")
    again = load_checkpoint(tmp_path / "model.safetensors").state_dict
    assert torch.equal(again[name], large.state_dict[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(nano, tmp_path, value):
    name = "bbox_head.rtm_cls.0.weight"
    diverged = Checkpoint(nano.spec, nano.state_dict | {name: nano.state_dict[name] * value})
    with pytest.raises(CheckpointError, match=r"rtm_cls\.0\.weight has values that are not finite"):
        save_safetensors(diverged, tmp_path / "model.safetensors")


def test_released_structure_is_read(nano, tmp_path):
    """Meta, HistoryBuffer, numpy scalars and averages are accepted; the size is recognised, the classes are meta's."""
    again = load_checkpoint(saved(released(nano.state_dict), tmp_path / "rtmdet-ins_nano.pth"))
    assert again.spec.classes == ("person",)
    assert again.spec.config == nano.spec.config
    torch.testing.assert_close(again.state_dict["backbone.stem.0.conv.weight"], nano.state_dict["backbone.stem.0.conv.weight"])
    again.network()


def test_official_size_is_recognised(tmp_path):
    """A file with COCO's classes and the tensors of the tiny model is the official tiny model."""
    spec = official_spec(OFFICIAL_NAMES[0])
    meta = {"dataset_meta": {"classes": spec.classes}, "cfg": pipeline_source(640, 640)}
    path = saved({"state_dict": build_network(spec).state_dict(), "meta": meta}, tmp_path / "anything.pth")
    assert load_checkpoint(path).spec == spec


def mmdet_file(nano, path, source, **dataset_meta):
    return saved({"state_dict": nano.state_dict, "meta": {"cfg": source, "dataset_meta": dataset_meta}}, path)


@pytest.mark.parametrize(
    "source",
    [
        pipeline_source(320, 320),
        f"test_dataloader = dict(dataset=dict({pipeline_source(320, 320).replace('test_pipeline', 'pipeline')}))",
        "data = dict(test=dict(pipeline=[dict(type='MultiScaleFlipAug', img_scale=(320, 320), transforms=[dict(type='Resize')])]))",
    ],
    ids=["mmdet 3", "mmdet 3, data loader", "mmdet 2"],
)
def test_image_size_is_read_from_the_configuration(nano, tmp_path, source):
    """A network that was trained at 320 px must not be run at 640."""
    spec = load_checkpoint(mmdet_file(nano, tmp_path / "a.pth", source, classes=("person",))).spec
    assert (spec.input_size, spec.classes) == (320, ("person",))


def test_a_single_class_without_its_comma_is_one_class(nano, tmp_path):
    """`classes=('cat')` is a string in Python, not a tuple of c, a and t."""
    path = mmdet_file(nano, tmp_path / "a.pth", pipeline_source(320, 320), classes="cat")
    assert load_checkpoint(path).spec.classes == ("cat",)


def test_test_settings_come_along_and_differences_are_reported(nano, tmp_path, caplog):
    """The normalisation of the file is used; what the service computes otherwise is a warning."""
    model = (
        "model = dict(data_preprocessor=dict(mean=[1.0, 2.0, 3.0]), test_cfg=dict(nms_pre=3000, nms=dict(iou_threshold=0.65)))"
    )
    path = mmdet_file(nano, tmp_path / "a.pth", f"{model}\n{pipeline_source(320, 320)}", classes=("cat",))
    config = load_checkpoint(path).spec.config
    assert config["data_preprocessor"]["mean"] == [1.0, 2.0, 3.0]
    assert config["data_preprocessor"]["std"] == nano.spec.config["data_preprocessor"]["std"]
    assert config["test_cfg"]["nms_pre"] == 3000
    assert "nms_pre 3000 (here 1000), nms.iou_threshold 0.65 (here 0.6)" in caplog.text


@pytest.mark.parametrize(
    "setting", ["nms=dict(type='soft_nms', iou_threshold=0.5)", "nms={'type': ['nms'], 1: 2}", "nms_pre=b'x'"]
)
def test_settings_that_cannot_be_used_are_left_out(nano, tmp_path, setting, caplog):
    """Another kind of NMS is told; what is neither number nor text does not get into the configuration."""
    source = f"model = dict(test_cfg=dict({setting}))\n{pipeline_source(320, 320)}"
    checkpoint = load_checkpoint(mmdet_file(nano, tmp_path / "a.pth", source, classes=("cat",)))
    assert checkpoint.spec.config["test_cfg"] == nano.spec.config["test_cfg"]
    assert ("nms.type soft_nms (here nms)" in caplog.text) == ("soft_nms" in setting)


@pytest.mark.parametrize(
    "dataset_meta",
    [["cat"], "cat", {"classes": 3}, {"classes": np.array([1, 2])}, {"classes": torch.ones(3)}],
    ids=["list", "text", "number", "array", "tensor"],
)
def test_labels_that_are_no_list_are_asked_for(nano, tmp_path, dataset_meta):
    meta = {"cfg": pipeline_source(320, 320), "dataset_meta": dataset_meta}
    path = saved({"state_dict": nano.state_dict, "meta": meta}, tmp_path / "a.pth")
    assert load_weights(path).classes is None
    with pytest.raises(CheckpointError, match="does not contain the labels"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "strange",
    [
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        torch.Tensor.to_sparse,
        lambda weight: weight.to("meta"),
        lambda weight: weight.new_tensor(1.0),
    ],
    ids=["quantized", "sparse", "without values", "a number"],
)
def test_strange_tensors_are_refused(nano, tmp_path, strange):
    name = "bbox_head.rtm_cls.0.weight"
    state = nano.state_dict | {name: strange(nano.state_dict[name])}
    with pytest.raises(CheckpointError, match=r"rtm_cls\.0\.weight is quantized, sparse|not an RTMDet-Ins model"):
        load_checkpoint(saved(state, tmp_path / "a.pth"), ("cat",), 320)


@pytest.mark.parametrize(
    ("source", "classes", "said"),
    [
        ("", ("cat",), "does not contain its test size, so the input size is unknown"),
        (pipeline_source(1333, 800), ("cat",), "its test size 1333 x 800 is not square"),
        (pipeline_source(320, 320), None, "does not contain the labels"),
        ("((((" * 10_000, ("cat",), "does not contain its test size"),
        (pipeline_source(320, 320), ("cat", "dog"), "2 labels for 1 class channels"),
        (f"model = dict(data_preprocessor=dict(bgr_to_rgb=True))\n{pipeline_source(320, 320)}", ("cat",), "trained on RGB"),
    ],
    ids=["no size", "no square", "no labels", "no Python", "other labels", "RGB"],
)
def test_what_the_file_does_not_say_is_asked_for(nano, tmp_path, source, classes, said):
    """Never guessed: a network at the wrong size finds worse in silence."""
    path = mmdet_file(nano, tmp_path / "a.pth", source, classes=classes)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_configuration_text_is_never_run(nano, tmp_path):
    marker = tmp_path / "run"
    source = f"import os\nos.mkdir({str(marker)!r})\nx = [os.mkdir({str(marker)!r})]\n{pipeline_source(320, 320)}"
    load_checkpoint(mmdet_file(nano, tmp_path / "a.pth", source, classes=("cat",)))
    assert not marker.exists()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.detector."])
def test_prefixes_of_other_programs_are_stripped(nano, tmp_path, prefix):
    """A bare state dict, with labels and size told."""
    state = {f"{prefix}{name}": value for name, value in nano.state_dict.items()}
    checkpoint = load_checkpoint(saved(state, tmp_path / "a.pth"), ("cat",), 320)
    assert (checkpoint.spec.classes, checkpoint.spec.input_size) == (("cat",), 320)
    checkpoint.network()


def test_average_copies_are_left_out(nano, tmp_path):
    """mmdet 2's `ema_*` buffers and a `module.` prefix do not reach the network."""
    state = {f"module.{name}": value for name, value in nano.state_dict.items()}
    state |= {"ema_backbone_stem_0_conv_weight": torch.zeros(1)}
    weights = load_weights(saved({"state_dict": state}, tmp_path / "old.pth"))
    assert set(weights.tensors) == set(nano.state_dict)


def test_own_description_is_used(nano, tmp_path):
    """Checkpoints of jobs.finetune carry the whole specification in their meta."""
    spec = nano.spec
    description = {"name": "mine", "classes": ["person"], "input_size": 480, "config": spec.config}
    path = saved({"state_dict": nano.state_dict, "meta": {"model_spec": description}}, tmp_path / "iter_1.pth")
    assert load_checkpoint(path).spec.name == "mine"
    assert load_checkpoint(path).spec.input_size == 480


def test_hostile_configuration_is_refused(nano, tmp_path):
    """A safetensors header that asks for another layer type builds nothing."""
    config = nano.spec.config | {"neck": {"type": "os.system", "command": "true"}}
    description = {"name": "x", "classes": ["person"], "input_size": 640, "config": config}
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": "rtmdet-ins-serve/1", "model_spec": json.dumps(description)})
    with pytest.raises(CheckpointError, match=r"os\.system"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"PK\x03\x04broken", b"\x80\x02}q\x00."], ids=["empty", "text", "zip", "dict"]
)
def test_damaged_files_are_clear(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="model"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS; `git lfs pull`"),
        ("<!DOCTYPE html>\n<title>404</title>", "it is text: '<!DOCTYPE html> <title>404</title>'"),
        ("", "it is empty"),
    ],
    ids=["pointer", "error page", "nothing"],
)
def test_text_instead_of_weights_is_reported(tmp_path, suffix, content, said):
    """What a clone without Git LFS or a failed download leaves."""
    path = tmp_path / f"weights{suffix}"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=f"^{re.escape(path.name)}: not a readable .*{re.escape(said)}"):
        load_checkpoint(path)


def test_missing_file_is_clear(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(CheckpointError, match="none"):
            load_checkpoint(tmp_path / name)


def test_foreign_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not an RTMDet-Ins model"):
        load_checkpoint(saved({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "resnet.pth"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("bbox_head.rtm_reg.0.weight"), r"1 missing .*rtm_reg.*, 0 unexpected"),
        (lambda state: state.update(extra=torch.zeros(1)), r"0 missing .*, 1 unexpected .*extra"),
        (lambda state: state.update({"bbox_head.rtm_reg.0.weight": torch.zeros(1)}), "size mismatch for bbox_head.rtm_reg"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_of_another_network_are_named(nano, change, said):
    state = dict(nano.state_dict)
    change(state)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint(nano.spec, state).network()


def test_shipped_model_loads():
    """The file in the repository is whole, small, and is the person model."""
    checkpoint = load_checkpoint(SHIPPED)
    assert checkpoint.spec.name == "rtmdet-ins_nano_person"
    assert checkpoint.spec.classes == ("person",)
    assert SHIPPED.stat().st_size < 4e6
    checkpoint.network()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(nano, tmp_path, suffix, value):
    """The weights of a training that diverged are refused, not served."""
    path = tmp_path / f"diverged{suffix}"
    tensors = {name: tensor.clone() for name, tensor in nano.state_dict.items()}
    tensors["bbox_head.rtm_cls.0.bias"][:] = value
    description = {"name": "n", "classes": list(nano.spec.classes), "input_size": 320, "config": nano.spec.config}
    if suffix == ".pth":
        torch.save({"state_dict": tensors, "meta": {"model_spec": description}}, path)
    else:
        save_file(tensors, path, metadata={"format": FORMAT, "model_spec": json.dumps(description)})
    for load in (load_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match=r"diverged.*bbox_head\.rtm_cls\.0\.bias has values that are not finite"):
            load(path)


DESCRIPTION = {"name": "n", "classes": ["person"], "input_size": 320, "config": nano_spec().config}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "format None, expected"),
        ({"format": FORMAT}, "no model description"),
        ({"format": FORMAT, "model_spec": "no JSON"}, "no model description"),
        ({"format": FORMAT, "model_spec": "[1, 2]"}, "must have exactly"),
        *(
            ({"format": FORMAT, "model_spec": json.dumps(DESCRIPTION | change)}, said)
            for change, said in (
                ({"more": 1}, "must have exactly"),
                ({"classes": 5}, "not usable"),
                ({"input_size": "large"}, "not usable"),
                ({"input_size": float("inf")}, "not usable"),
                ({"classes": ["cat", "dog"]}, "2 class names for 1 class channels"),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_describe_no_model(nano, tmp_path, metadata, said):
    path = tmp_path / "weights.safetensors"
    save_file(nano.state_dict, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path).network()


@pytest.mark.parametrize("described", ["no JSON", "[1, 2]", "3", '{"classes": 5}', '{"classes": {}}', "{}", "null"])
def test_labels_of_a_strange_description(nano, tmp_path, described):
    """To start a training from, tensors are enough; labels that cannot be read are none."""
    path = tmp_path / "weights.safetensors"
    save_file(nano.state_dict, path, metadata={"model_spec": described})
    assert load_weights(path).classes is None
    assert load_weights(path).tensors.keys() == nano.state_dict.keys()


@pytest.mark.parametrize("described", [5, [1], "text", {"classes": 3}])
def test_labels_of_a_strange_description_in_a_pickle(nano, tmp_path, described):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": nano.state_dict, "meta": {"model_spec": described}}, path)
    assert load_weights(path).classes is None


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {}},
        {"neck": None},
        {"bbox_head": {"num_classes": 1}},
        {"type": None},
        {"backbone": {"type": "CSPNeXt", "x": 1}},
        {"type": ["RTMDet"]},
    ],
    ids=repr,
)
def test_a_configuration_without_a_network(nano, tmp_path, change):
    path = tmp_path / "strange.safetensors"
    description = {"name": "n", "classes": ["person"], "input_size": 320, "config": nano.spec.config | change}
    save_file(nano.state_dict, path, metadata={"format": FORMAT, "model_spec": json.dumps(description)})
    with pytest.raises(CheckpointError):
        load_checkpoint(path).network()
