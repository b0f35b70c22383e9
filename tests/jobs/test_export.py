"""Exported models give the same results as the engine."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import export  # isort: skip  (before mmdet)

from jobs.command_line import CommandFault
from jobs.exporting.mmdet_files import write_mmdet
from jobs.third_party import known_warnings_ignored
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.masks.rle import mask_logits_to_rle, rle_to_mask
from pipeline.model.checkpoints import load_checkpoint, save_safetensors
from pipeline.types import DetectOptions, Letterbox, LoadedImage
from tests.support.seeded import photo, seeded_checkpoint

SIZE = 128
DOCS = Path(__file__).parents[2] / "docs/TRAINING.md"
THRESHOLD = 0.1


def saved(folder, size):
    path = folder / f"{size}.safetensors"
    save_safetensors(seeded_checkpoint(size, SIZE), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """ONNX file of the nano size, written by the command, and the checkpoint that it was made of."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    source = saved(folder, "nano")
    assert export.main([str(source), "--output", str(folder / "mine.onnx"), "--max-detections", "60"]) == 0
    return folder / "mine.onnx", load_checkpoint(source)


def ours(checkpoint, pixels, count):
    """Instances of an RGB photo and their full-size masks."""
    engine = create_engine(checkpoint, EngineOptions(kind="torch", device="cpu", precision="fp32"))
    options = DetectOptions(score_threshold=THRESHOLD, max_detections=count)
    (found,) = engine.detect([load_image(pixels, DecodeLimits(), SIZE)], [options])
    return found, [rle_to_mask(mask_logits_to_rle(logits, found.letterbox)) for logits in found.mask_logits]


@pytest.mark.slow
@pytest.mark.parametrize("hw", [(90, 200), (300, 170), (128, 128)])
def test_the_documented_lines_find_what_the_engine_finds(exported, hw, monkeypatch):
    """Boxes, scores, labels and full-size masks, by the code in docs/TRAINING.md."""
    path, checkpoint = exported
    monkeypatch.chdir(path.parent)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "onnxruntime" in block)
    documented = {}
    exec(code, documented)
    pixels = photo(hw, seed=5)
    found, masks = ours(checkpoint, pixels, 60)
    boxes, scores, names, full = documented["detect"](pixels[..., ::-1], THRESHOLD)
    assert len(found.scores) > 5
    np.testing.assert_allclose(boxes, found.boxes, atol=0.01)
    np.testing.assert_allclose(scores, found.scores, atol=1e-4)
    assert names == ["person"] * len(names)
    for mine, theirs in zip(masks, full, strict=True):
        assert np.mean(mine.astype(bool) != theirs) < 1e-3


@pytest.mark.slow
def test_any_batch(exported):
    """Rows of a batch are those of its photos alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported[0]))
    pictures = np.stack([photo((SIZE, SIZE), seed) for seed in range(3)])
    together = session.run(None, {"images": pictures})
    for number in range(3):
        for one, many in zip(session.run(None, {"images": pictures[number : number + 1]}), together, strict=True):
            np.testing.assert_allclose(one[0], many[number], rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_another_model_is_refused(exported):
    """The file must be of this checkpoint: a class bias away is too far."""
    from jobs.exporting.onnx_model import check_onnx

    path, checkpoint = exported
    changed = {
        name: value + 0.1 if "rtm_cls" in name and "bias" in name else value for name, value in checkpoint.state_dict.items()
    }
    with pytest.raises(CommandFault, match=r"differs from the engine.*scores by 0\.0"):
        check_onnx(path, replace(checkpoint, state_dict=changed), SIZE, 60)


def test_an_export_that_differs_is_deleted(tmp_path, monkeypatch):
    from jobs.exporting import onnx_model

    def differs(path, *_):
        assert path.read_text() == "model"
        raise CommandFault("differs")

    monkeypatch.setattr(onnx_model, "write_onnx", lambda _checkpoint, path, *_: path.write_text("model"))
    monkeypatch.setattr(onnx_model, "check_onnx", differs)
    with pytest.raises(CommandFault, match="differs"):
        export.export_onnx(seeded_checkpoint("nano", SIZE), tmp_path / "mine.onnx", 100)
    assert list(tmp_path.iterdir()) == []


def test_the_exported_network_finds_what_the_engine_finds():
    """The module that becomes the ONNX model, run by torch: fixed shapes, no threshold, any number of images."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from jobs.exporting.onnx_model import EndToEnd, agreement_of, picture

    checkpoint = seeded_checkpoint("nano", SIZE)
    pictures = [picture(SIZE, seed) for seed in range(3)]
    letterbox = Letterbox((SIZE, SIZE), (SIZE, SIZE), SIZE)
    engine = create_engine(checkpoint, EngineOptions(kind="torch", device="cpu", precision="fp32"))
    options = DetectOptions(score_threshold=0.0, max_detections=50)
    found = engine.detect([LoadedImage(pixels, letterbox) for pixels in pictures], [options] * 3)
    with torch.no_grad(), known_warnings_ignored():
        outputs = EndToEnd(checkpoint, SIZE, 50)(torch.from_numpy(np.stack(pictures)))
    agreement = agreement_of(found, [output.numpy() for output in outputs])
    assert agreement.good, agreement
    assert agreement.instances == 150


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "s"])
def test_official_sizes(tmp_path, size, capsys):
    """80 classes, in which one position may be found more than once."""
    assert export.main([str(saved(tmp_path, size)), "--output", str(tmp_path / "mine.onnx")]) == 0
    assert "300 instances" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["nano", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hw", [(96, 192), (128, 128)])
def test_mmdet_finds_the_same(tmp_path, size, hw, monkeypatch):
    """Its own init_detector and inference_detector, from the written files alone. (Where a side is rounded, its masks are a pixel narrower
    than the photo; not at these sizes.)
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = seeded_checkpoint(size, SIZE)
    weights, config, *_ = write_mmdet(checkpoint, tmp_path / "mine.pth")
    pixels = photo(hw, seed=3)
    found, masks = ours(checkpoint, pixels, 100)
    with known_warnings_ignored():
        from mmdet.apis import inference_detector, init_detector

        detector = init_detector(str(config), str(weights), device="cpu")
        theirs = inference_detector(detector, pixels[..., ::-1].copy()).pred_instances.numpy()
    assert detector.dataset_meta["classes"] == checkpoint.spec.classes
    wanted = (theirs.scores > THRESHOLD) & (theirs.bboxes[:, 0] < hw[1]) & (theirs.bboxes[:, 1] < hw[0])
    clipped = np.clip(theirs.bboxes[wanted], 0, [hw[1], hw[0]] * 2)
    assert len(found.scores) > 5
    np.testing.assert_allclose(clipped, found.boxes, atol=1e-3)
    np.testing.assert_allclose(theirs.scores[wanted], found.scores, atol=1e-4)
    np.testing.assert_array_equal(theirs.labels[wanted], found.labels)
    for mine, full in zip(masks, theirs.masks[wanted], strict=True):
        assert np.mean(mine.astype(bool) != full) < 1e-3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--output", "mine.tflite"], "must end in .onnx, or in .pth"),
        (["--output", "mine.onnx", "--image-size", "100"], "multiple of 32"),
        (["--output", "mine.onnx", "--image-size", "32", "--max-detections", "22"], "more than the 21 positions"),
    ],
)
def test_impossible_exports_are_refused(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    assert export.main(["rtmdet-ins_nano_person", *more]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_the_same_name_is_not_replaced(tmp_path, capsys):
    """`detect.py` beside `detect.pth`; the configuration of an earlier export is."""
    weights, program = tmp_path / "detect.pth", tmp_path / "detect.py"
    program.write_text("print('mine')")
    assert export.main(["rtmdet-ins_nano_person", "--output", str(weights)]) == 2
    assert f"{program} is there already" in capsys.readouterr().err
    assert (program.read_text(), weights.exists()) == ("print('mine')", False)
    program.unlink()
    for _ in range(2):
        assert export.main(["rtmdet-ins_nano_person", "--output", str(weights)]) == 0


def test_missing_packages_are_reported_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("torch", "no_such_package"))
    assert export.main(["rtmdet-ins_nano_person", "--output", str(tmp_path / "mine.onnx")]) == 2
    assert "needs no_such_package, not installed here: .venv/bin/pip install -e '.[export]'" in capsys.readouterr().err
