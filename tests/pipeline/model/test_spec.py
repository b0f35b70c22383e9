"""Model specifications and the networks built from them."""

import json

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.model.spec import OFFICIAL_NAMES, ModelSpec, build_network, mmdet_config, nano_spec, official_spec, spec_of_tensors

PARAMETERS_M = dict(zip(OFFICIAL_NAMES, (5.6, 10.18, 27.58, 57.37, 102.7), strict=True))


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_official_sizes_are_the_published_ones(name):
    """Every official configuration builds, without a download, with as many parameters as the model zoo states."""
    spec = official_spec(name)
    network = build_network(spec)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(PARAMETERS_M[name], rel=0.01)
    assert len(spec.classes) == 80
    assert spec.input_size == 640
    assert not network.training


def test_configuration_is_plain_json():
    """A specification survives the JSON header of our model files unchanged."""
    for spec in (official_spec(OFFICIAL_NAMES[0]), nano_spec()):
        assert json.loads(json.dumps(spec.config)) == spec.config


def test_unknown_name_lists_the_known():
    with pytest.raises(CheckpointError, match="rtmdet-ins_x_8xb16-300e_coco"):
        official_spec("rtmdet-ins_xxl")


def test_nano_branches_are_apart():
    """The class and the box branch are different layers: in mmdet 3.3.0's own head they are one."""
    head = build_network(nano_spec()).bbox_head
    assert head.cls_convs[0] is not head.reg_convs[0]
    assert {parameter.shape[1] for name, parameter in head.reg_convs.named_parameters() if "depthwise_conv.conv" in name} == {1}


def test_nano_has_its_class_channels():
    spec = nano_spec(("cat", "dog"), input_size=320)
    assert build_network(spec).bbox_head.rtm_cls[0].out_channels == 2
    assert nano_spec().name == "rtmdet-ins_nano_person"


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # mmdet's grid of points
def test_mask_logits_equal_mmdets():
    """The three matrix products give what mmdet's grouped convolutions give."""
    from mmdet.models.dense_heads import RTMDetInsSepBNHead

    torch.manual_seed(0)
    head = build_network(nano_spec()).bbox_head
    features, kernels = torch.randn(8, 20, 30), torch.randn(12, 169) * 0.3
    strides = torch.tensor([8.0, 16.0, 32.0]).repeat(4)
    priors = torch.stack([torch.rand(12) * 240, torch.rand(12) * 160, strides, strides], dim=1)
    expected = RTMDetInsSepBNHead._mask_predict_by_feat_single(head, features, kernels, priors)
    torch.testing.assert_close(head._mask_predict_by_feat_single(features, kernels, priors), expected, rtol=1e-4, atol=1e-5)
    assert head._mask_predict_by_feat_single(features, kernels[:0], priors[:0]).shape == (0, 20, 30)


@pytest.mark.parametrize("kind", ["os.system", "subprocess.Popen", "FasterRCNN"])
def test_foreign_layer_types_are_refused(kind):
    """mmengine builds any dotted Python name; a configuration may name parts of RTMDet-Ins only."""
    spec = nano_spec()
    hostile = spec.config | {"neck": {"type": kind, "args": "true"}}
    with pytest.raises(CheckpointError, match="not part of RTMDet-Ins"):
        build_network(ModelSpec(spec.name, spec.classes, spec.input_size, hostile))


@pytest.mark.parametrize("size", [0, -32, 100])
def test_input_size_is_a_multiple_of_32(size):
    with pytest.raises(CheckpointError, match="multiple of 32"):
        nano_spec(input_size=size)


def test_class_names_match_channels():
    with pytest.raises(CheckpointError, match="2 class names for 1"):
        ModelSpec("x", ("a", "b"), 640, nano_spec().config)


def test_a_network_is_recognised_by_its_tensors(monkeypatch):
    """By names and shapes, with any number of class channels; another network is not."""
    monkeypatch.setattr("pipeline.model.spec.OFFICIAL_NAMES", OFFICIAL_NAMES[:1])
    tensors = build_network(nano_spec(("a", "b", "c"))).state_dict()
    found = spec_of_tensors(tensors)
    assert found is not None
    assert (found.name, found.classes) == (nano_spec().name, ("class 0", "class 1", "class 2"))
    assert spec_of_tensors({name: value for name, value in tensors.items() if "neck" not in name}) is None
    assert spec_of_tensors({}) is None


def test_mmdet_config_has_the_test_pipeline():
    """mmdet's own programs find model, test pipeline and scope in it."""
    config = mmdet_config(nano_spec(input_size=320))
    assert config.test_dataloader.dataset.pipeline[1].scale == (320, 320)
    assert config.model.type == "RTMDet"
