"""Metrics on predictions whose right answer is known."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import evaluate
from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.evaluation import predictions
from jobs.evaluation.metrics_azureml import azureml_metrics, voc_metrics
from jobs.evaluation.metrics_coco import coco_metrics
from jobs.evaluation.predictions import category_ids_of, predict_with_mmdet
from jobs.evaluation.results_file import read_results
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors
from pipeline.model.spec import build_network, nano_spec
from tests.support.rectangles import SIZE, document, thing
from tests.support.stub_service import stub_service

PAIR = document(thing(0, 0, 40, 40), thing(50, 50, 40, 40))
UNUSED_URL = ("--url", "http://127.0.0.1:9")


@pytest.fixture
def common(tiny_coco):
    return ["--annotations", str(tiny_coco / "coco.json"), "--images", str(tiny_coco / "photos")]


@pytest.fixture
def read(tmp_path):
    """Reads these results as a file of them, for the annotations of PAIR or others."""

    def of_file(results, truth=PAIR, encoding="utf-8"):
        (tmp_path / "results.json").write_text(json.dumps(results), encoding)
        return read_results(tmp_path / "results.json", truth)

    return of_file


def test_perfect_predictions_score_one():
    found = [entry | {"score": 0.9} for entry in PAIR["annotations"]]
    metrics = evaluate.measure(PAIR, found)
    assert metrics["coco"]["mask"]["ap"] == metrics["coco"]["box"]["ap"] == 1.0
    assert metrics["azureml"]["mask"]["mean_average_precision"] == 1.0
    assert metrics["azureml"]["mask"]["precision"] == metrics["azureml"]["box"]["recall"] == 1.0


def test_nothing_found_scores_zero():
    metrics = evaluate.measure(PAIR, [])
    assert metrics["coco"]["box"]["ap"] == 0.0
    label = metrics["azureml"]["mask"]["per_label"]["cat"]
    assert label == {"average_precision": 0.0, "precision": None, "recall": 0.0}


def test_the_table_says_what_a_mean_hides():
    """Each label's AP where there are several; and that nothing was found at all, which a row of zeros does not."""
    truth = document(thing(0, 0, 40, 40), thing(50, 50, 40, 40, category_id=2), names=("cat", "dog"))
    table = evaluate.as_table(evaluate.measure(truth, [thing(0, 0, 40, 40, score=0.9)]))
    lines = table.splitlines()
    assert lines[3:6] == ["mask AP by label", "  cat  100.0", "  dog    0.0"]
    assert lines[-4:] == [
        "annotated \\ found  cat  dog  missed",
        "              cat    1    0       0",
        "              dog    0    0       1",
        "    nothing there    0    0       0",
    ]
    assert "there are no predictions" not in table
    assert "there are no predictions" in evaluate.as_table(evaluate.measure(truth, []))


def test_labels_that_only_one_side_has_are_reported(capsys):
    """They are not counted, which would look like a bad model."""
    assert category_ids_of(("cat", "fox"), document(names=("dog", "cat"))) == {0: 2}
    said = capsys.readouterr().err
    assert "annotations do not know, so they are not counted: fox" in said
    assert "the model does not know: dog" in said
    with pytest.raises(AnnotationsError, match="none in common"):
        category_ids_of(("bird",), document(names=("dog", "cat")))


def test_voc_by_hand():
    """Hit, miss, hit by falling score: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1; area 1/2 + 1/2 x 2/3."""
    found = [thing(0, 0, 40, 40, score=0.9), thing(0, 60, 20, 20, score=0.8), thing(50, 50, 40, 40, score=0.7)]
    label = voc_metrics(PAIR, found)["per_label"]["cat"]
    assert label == {"average_precision": pytest.approx(5 / 6, abs=1e-4), "precision": 0.6667, "recall": 1.0}


def test_second_hit_on_an_object_is_false():
    found = [thing(0, 0, 40, 40, score=0.9), thing(0, 0, 40, 40, score=0.8)]
    assert voc_metrics(PAIR, found)["precision"] == 0.5


def test_crowds_do_not_count():
    """A prediction on a crowd is neither right nor wrong, and a crowd is nothing to find."""
    truth = document(thing(0, 0, 40, 40), thing(50, 50, 40, 40, iscrowd=1))
    found = [thing(0, 0, 40, 40, score=0.9), thing(55, 55, 10, 10, score=0.8)]
    metrics = voc_metrics(truth, found)
    assert (metrics["precision"], metrics["recall"]) == (1.0, 1.0)


def test_predictions_inside_a_crowd_do_not_count():
    """AzureML does not count, which costs boxes recall; the table says so."""
    truth = document(thing(0, 0, 90, 90, iscrowd=1), thing(10, 10, 20, 20))
    metrics = evaluate.measure(truth, [thing(10, 10, 20, 22, score=0.9)])
    assert metrics["azureml"]["box"]["recall"] == 0.0
    assert metrics["coco"]["box"]["ap50"] == 1.0
    assert "AzureML does not count" in evaluate.as_table(metrics)
    assert "AzureML does not count" not in evaluate.as_table(evaluate.measure(document(thing(0, 0, 9, 9)), []))


def test_undefined_is_none_not_zero():
    """A label that is nowhere in the truth has no recall and stays out of the means."""
    truth = document(thing(0, 0, 40, 40), names=("cat", "dog"))
    metrics = voc_metrics(truth, [thing(0, 0, 40, 40, score=0.9)])
    assert metrics["per_label"]["dog"] == {"average_precision": None, "precision": None, "recall": None}
    assert metrics["mean_average_precision"] == 1.0
    assert coco_metrics(truth, [thing(0, 0, 40, 40, score=0.9)])["mask"]["per_label"]["dog"] is None


def test_masks_and_boxes_are_measured_separately():
    """The right box around the wrong mask counts as a box only."""
    found = thing(0, 0, 40, 40, score=0.9) | {"segmentation": thing(0, 0, 40, 15)["segmentation"]}
    truth = document(thing(0, 0, 40, 40))
    metrics = evaluate.measure(truth, [found])
    assert metrics["coco"]["box"]["ap50"] == 1.0
    assert metrics["coco"]["mask"]["ap50"] == 0.0
    assert metrics["azureml"]["mask"]["recall"] == 0.0


def test_measuring_changes_nothing():
    """Both metrics see the same predictions: the first leaves them as they were."""
    found = [entry | {"score": 0.9} for entry in PAIR["annotations"]]
    before = copy.deepcopy((PAIR, found))
    evaluate.measure(PAIR, found)
    assert (PAIR, found) == before


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A nano model for the tiny data set, with fresh weights and an eager class branch."""
    torch.manual_seed(0)
    spec = nano_spec(("ball", "egg"), input_size=96)
    state = build_network(spec).state_dict()
    for name in state:
        if "rtm_cls" in name and name.endswith("bias"):
            state[name] = state[name] + 3
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_safetensors(Checkpoint(spec, state), path)
    return path


def test_command_line(common, model_file, tmp_path, capsys):
    """mmdet's path end to end: table, JSON on the last line, results file that measures the same again."""
    results = tmp_path / "results.json"
    assert evaluate.main([*common, "--checkpoint", str(model_file), "--save-results", str(results)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "ap50" in first[0]
    assert json.loads(first[-1])["predictions"] > 0
    assert evaluate.main([*common, "--results", str(results)]) == 0
    assert capsys.readouterr().out.splitlines() == first


def test_predictions_are_saved_before_metrics_are_computed(common, tmp_path, monkeypatch):
    """They are written to a new folder before anything is measured."""

    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(evaluate, "measure", fails)
    monkeypatch.setattr(evaluate, "_predict", lambda *_: [])
    with pytest.raises(ZeroDivisionError):
        evaluate.main([*common, *UNUSED_URL, "--save-results", str(tmp_path / "new" / "results.json")])
    assert (tmp_path / "new" / "results.json").read_text() == "[]"


def test_a_confusion_plot(common, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_predict", lambda *_: [])
    assert evaluate.main([*common, *UNUSED_URL, "--plot", str(tmp_path / "new" / "confusion.png")]) == 0
    assert (tmp_path / "new" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_an_invalid_output_is_refused_before_scoring(common, tmp_path, monkeypatch, capsys):
    """A folder that is a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate, "_predict", lambda *_: pytest.fail("began to work"))
    assert evaluate.main([*common, *UNUSED_URL, "--output", str(tmp_path / "file" / "metrics.json")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_photos_that_cannot_be_decoded_are_named_before_the_work(tiny_coco, common, tmp_path, monkeypatch, capsys):
    """Not after hours, with the loss of all predictions."""
    monkeypatch.setattr(evaluate, "_predict", lambda *_: pytest.fail("began to work"))
    shutil.copytree(tiny_coco / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "6.png").write_bytes((tiny_coco / "photos" / "6.png").read_bytes()[:100])
    assert evaluate.main([*common, *UNUSED_URL, "--images", str(tmp_path / "photos")]) == 2
    assert re.search(r"coco\.json: 1 of 6 photos cannot be decoded, first: \S*6\.png: not a", capsys.readouterr().err)


def test_missing_photos_are_named_before_the_work(common, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "_predict", lambda *_: pytest.fail("began to work"))
    (tmp_path / "1.png").touch()
    (tmp_path / "2.PNG").touch()
    assert evaluate.main([*common, *UNUSED_URL, "--images", str(tmp_path)]) == 2
    assert "5 of 6 photos are missing in" in (said := capsys.readouterr().err)
    assert "2.PNG: capitals differ" in said


def test_a_photo_annotated_sideways_is_named():
    """Not a mask AP of 0: the size that was scored is not the size that was annotated."""
    truth = copy.deepcopy(PAIR)
    truth["images"][0] |= {"width": SIZE // 2, "file_name": "turned.jpg"}
    with pytest.raises(AnnotationsError, match=r"turned\.jpg was scored as 100 x 100 pixels but is annotated as 50 x 100"):
        evaluate.measure(truth, [entry | {"score": 0.9} for entry in PAIR["annotations"]])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--image-size", "33"], "must be a multiple of 32 px, got 33"),
        (["--image-size", "320", "--engine", "openvino"], "--image-size goes with --checkpoint and --engine mmdet"),
        (["--precision", "bf16"], "--precision goes with --checkpoint and --engine openvino or torch"),
    ],
)
def test_options_that_would_not_be_used_are_refused(common, capsys, more, said):
    """The numbers would be taken for those of another size or precision."""
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([*common, "--checkpoint", "rtmdet-ins_nano_person", *more])
    assert said in capsys.readouterr().err


def test_input_size_can_be_another(tiny_coco, model_file, tmp_path):
    annotations = read_annotations(tiny_coco / "coco.json", tiny_coco / "photos", tmp_path)
    results = predict_with_mmdet(load_checkpoint(model_file), annotations, input_size_px=64)
    assert {result["image_id"] for result in results} <= set(range(1, 7))
    assert all(result["segmentation"]["size"] == [96, 128] for result in results)


@pytest.mark.parametrize(("width", "height"), [(301, 200), (200, 301)])
def test_masks_of_mmdet_have_the_size_of_their_photo(model_file, tmp_path, width, height):
    """mmdet's lack a column or row where the sides are not scaled alike, as in 3:2 photos of most sizes: the whole set was refused."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(tmp_path / "photos/a.png")
    ring = [20, 20, 90, 20, 90, 90, 20, 90]
    truth = document({"image_id": 1, "category_id": 1, "segmentation": [ring]}, names=("ball", "egg"))
    truth["images"][0] |= {"width": width, "height": height, "file_name": "a.png"}
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    common = ["--annotations", str(tmp_path / "coco.json"), "--images", str(tmp_path / "photos"), "--checkpoint", str(model_file)]
    assert evaluate.main([*common, "--save-results", str(tmp_path / "results.json")]) == 0
    sizes = {tuple(result["segmentation"]["size"]) for result in json.loads((tmp_path / "results.json").read_text())}
    assert sizes == {(height, width)}


@pytest.mark.cuda
def test_mmdet_on_a_gpu_finds_what_it_finds_on_the_cpu(tiny_coco, model_file, tmp_path, monkeypatch):
    """As many instances, up to rounding, and the GPU was used for them."""
    annotations, model = read_annotations(tiny_coco / "coco.json", tiny_coco / "photos", tmp_path), load_checkpoint(model_file)
    torch.cuda.reset_peak_memory_stats()
    before, on_gpu = torch.cuda.max_memory_allocated(), predict_with_mmdet(model, annotations)
    assert torch.cuda.max_memory_allocated() > before
    monkeypatch.setattr(predictions, "choose_torch_device", lambda _name: torch.device("cpu"))
    assert len(on_gpu) == pytest.approx(len(predict_with_mmdet(model, annotations)), rel=0.05)


@pytest.mark.parametrize("results", [{"boxes": []}, [{"image_id": 1}]], ids=["no list", "no results"])
def test_results_file_is_checked(common, read, tmp_path, capsys, results):
    with pytest.raises(AnnotationsError, match="not COCO results"):
        read(results)
    assert evaluate.main([*common, "--results", str(tmp_path / "results.json")]) == 2
    assert "not COCO results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": 9}, "image_id 9 is of no photo"),
        ({"image_id": "9"}, "image_id '9' is of no photo"),
        ({"image_id": [1]}, "is of no photo"),
        ({"score": float("nan")}, "must be finite numbers"),
        ({"score": "0.9"}, "must be finite numbers"),
        ({"bbox": [1, 2, 3]}, "four of them"),
        ({"score": True}, "must be finite numbers"),
        ({"score": 10**400}, "must be finite numbers"),
        ({"bbox": 7}, "four of them"),
        ({"segmentation": []}, "there is no outline"),
        ({"segmentation": [[1, 2]]}, "there is no outline"),
        ({"segmentation": {"size": [100, 100]}}, "not RLE"),
    ],
)
def test_a_result_that_cannot_be_measured_is_named(read, changes, said):
    """By its place in the file: no traceback, and no score that sorts anywhere. Outlines are read as in annotations."""
    good = thing(0, 0, 40, 40, score=0.9)
    with pytest.raises(AnnotationsError, match=r"result 1 ") as caught:
        read([good, good | changes])
    assert said in str(caught.value)


def test_results_with_polygons_and_plain_run_lengths(read):
    """As other tools write them: the same masks."""
    polygon = [[0, 0, 40, 0, 40, 40, 0, 40]]
    plain = {"size": [SIZE, SIZE], "counts": [0, *[40, 60] * 39, 40, 60 + 60 * SIZE]}
    results = [thing(0, 0, 40, 40, score=0.9, segmentation=segmentation) for segmentation in (polygon, plain)]
    assert [result["segmentation"] for result in read(results)] == [thing(0, 0, 40, 40)["segmentation"]] * 2
    assert evaluate.measure(PAIR, read(results))["coco"]["mask"]["ap"] > 0


def test_results_with_boxes_as_corners_are_refused(read):
    """As most networks give them: a box AP of nearly 0 would look like that of a bad model."""
    right, corners = thing(20, 20, 40, 40, score=0.9), thing(20, 20, 40, 40, score=0.9, bbox=[20, 20, 60, 60])
    with pytest.raises(AnnotationsError, match="the bbox of 2 of 3 results is two corners, where COCO has x, y, width, height"):
        read([right, corners, corners])
    assert len(read([right, right, corners])) == 3


@pytest.mark.parametrize("box", [{}, {"bbox": []}, {"bbox": None}], ids=str)
def test_results_with_a_bom_ids_as_text_and_no_box(read, capsys, box):
    """COCO's own format of mask results has no box, and pycocotools takes an empty one for none; that of the mask is as good."""
    whole = thing(0, 0, 40, 40, score=0.9)
    result = {key: value for key, value in whole.items() if key not in ("bbox", "id", "area")} | box
    (kept,) = read([result | {"image_id": "1", "category_id": "1"}], encoding="utf-8-sig")
    assert (kept["image_id"], kept["category_id"], kept["bbox"]) == (1, 1, [0, 0, 40, 40])
    assert "1 of 1 results have no bbox" in capsys.readouterr().err


@pytest.mark.parametrize(
    "ids", [[2**63 + 1, 2, 2**63 + 3], [9007199254740993, 9007199254740992, 0.5], [1, "b", 3]], ids=["big", "floats", "text"]
)
def test_ids_of_any_size_and_type_are_apart(ids):
    """pycocotools' arrays made one of several, and AP was of fewer photos; of text and numbers it cannot make an order."""

    def renamed(objects):
        return [found | {"image_id": ids[found["image_id"] - 1], "category_id": ids[found["category_id"]]} for found in objects]

    images = [{"id": number, "file_name": f"{number}.jpg", "width": SIZE, "height": SIZE} for number in (1, 2, 3)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    real = [thing(0, 0, 40, 40, image_id=image, category_id=0, id=image) for image in (1, 2, 3)]
    found = [thing(0, 6 * image, 40, 40, image_id=image, category_id=0, score=image / 10) for image in (1, 2, 3)]
    plain = coco_metrics({"images": images, "annotations": real, "categories": categories}, found)
    own = (
        [entry | {"id": ids[place]} for place, entry in enumerate(images)],
        [entry | {"id": ids[place]} for place, entry in enumerate(categories)],
    )
    assert coco_metrics({"images": own[0], "annotations": renamed(real), "categories": own[1]}, renamed(found)) == plain
    assert 0 < plain["mask"]["ap"] < 1


def test_without_predictions_ap_is_undefined_where_there_is_no_object():
    """As with predictions: no AP of small objects or of a label that nothing has."""
    truth = document(thing(0, 0, 40, 40)) | {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    mask = coco_metrics(truth, [])["mask"]
    assert (mask["ap"], mask["ap_medium"], mask["ap_small"]) == (0, 0, None)
    assert mask["per_label"] == {"cat": 0, "dog": None}
    assert coco_metrics(document(), [])["box"]["ap"] is None


def test_results_of_other_categories_are_reported(read, capsys):
    assert len(read([thing(0, 0, 40, 40, score=0.9), thing(0, 0, 40, 40, score=0.9, category_id=7)])) == 1
    assert (
        "1 of 2 results are of categories that the annotations do not know, so they are not counted: 7" in capsys.readouterr().err
    )
    for other in (7, "cat", True):
        with pytest.raises(AnnotationsError, match=f"are of the categories {other}, the annotations have 1: none in common"):
            read([thing(0, 0, 40, 40, score=0.9, category_id=other)])


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([{"score": 90}, {"score": 0.5}], "1 of 3 scores are not between 0 and 1"),
        ([{}, {}, {"score": 0.8}], "1 of 4 results are there twice"),
        ([{"bbox": [60, 60, 20, 20]}, {"bbox": [61, 60, 20, 20]}], "the bbox of 2 of 3 results lies elsewhere than the mask"),
        (
            [{"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], "score": score} for score in (0.5, 0.6)],
            "the bbox of 2 of 3 results lies elsewhere than the mask, or the mask in the photo's corner",
        ),
        (
            [{"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], "bbox": [0, 0, 1, 1], "score": score} for score in (0.5, 0.6)],
            "the bbox of 2",
        ),
        ([{}], "1 of 2 photos with objects have no results"),
    ],
    ids=["per cent", "twice", "elsewhere", "fractions", "all in fractions", "a part"],
)
def test_results_that_are_valid_and_wrong_are_reported(read, capsys, results, told):
    """Their AP looks like that of a bad model."""
    other = thing(0, 0, 40, 40, image_id=2, score=0.7)
    truth = document(thing(0, 0, 40, 40, iscrowd=0), thing(0, 0, 40, 40, iscrowd=0, image_id=2))
    truth["images"] = [PAIR["images"][0] | {"id": number} for number in (1, 2, 3)]
    read([thing(0, 0, 40, 40, score=0.9) | result for result in results] + [other] * (len(results) > 1), truth)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(told)


def test_results_whose_ids_are_off_by_one_are_refused(read):
    """Channels of a network, from 0 on, where the annotations' ids begin at 1."""
    truth = document(thing(0, 0, 40, 40), names=("cat", "dog"))
    with pytest.raises(AnnotationsError, match="category_id of the results is one below an id of the categories, and 0 is none"):
        read([thing(0, 0, 40, 40, score=0.9, category_id=channel) for channel in (0, 1)], truth)


def test_metrics_that_look_like_a_fault_are_doubted():
    """No prediction is on an object, or most have another label. Few of them say nothing."""
    objects = [thing(9 * place, 0, 8, 40, category_id=1 + place % 2) for place in range(11)]
    truth = document(*objects, names=("cat", "dog"))
    elsewhere = [thing(9 * place, 60, 8, 20, score=0.9) for place in range(11)]
    exchanged = [found | {"score": 0.9, "category_id": 3 - found["category_id"]} for found in objects]
    for found, doubt in (
        (elsewhere, "none of 11 predictions overlaps"),
        (exchanged, "11 of 11 matched predictions have another label"),
    ):
        assert doubt in evaluate.as_table(evaluate.measure(truth, found))
        assert "?" not in evaluate.as_table(evaluate.measure(truth, found[:9]))
    assert "?" not in evaluate.as_table(evaluate.measure(truth, [found | {"score": 0.9} for found in objects]))


def test_azureml_metrics_have_their_own_threshold():
    """Predictions of low score count for COCO alone: they would ruin the precision."""
    found = [thing(0, 0, 40, 40, score=0.9), *(thing(60, 0, 20, 20, score=0.1) for _ in range(30))]
    metrics = evaluate.measure(PAIR, found)
    assert (metrics["predictions"], metrics["azureml"]["predictions"]) == (31, 1)
    assert metrics["azureml"]["mask"]["precision"] == 1.0
    assert evaluate.measure(PAIR, found, score_threshold=0.05)["azureml"]["mask"]["precision"] < 0.1
    shifted = [thing(4, 0, 40, 40, score=0.9)]
    assert azureml_metrics(PAIR, shifted, iou_threshold=0.5)["mask"]["recall"] == 0.5
    assert azureml_metrics(PAIR, shifted, iou_threshold=0.9)["mask"]["recall"] == 0.0


def test_confusion_by_hand():
    """A cat found, a dog taken for a cat, a dog missed, a cat where nothing is; a higher threshold loses the second."""
    truth = document(
        thing(0, 0, 20, 20), thing(40, 0, 20, 20, category_id=2), thing(80, 0, 20, 20, category_id=2), names=("cat", "dog")
    )
    found = [thing(0, 0, 20, 20, score=0.9), thing(40, 0, 20, 20, score=0.6), thing(0, 60, 20, 20, score=0.8)]
    matrices = azureml_metrics(truth, found)["mask"]["confusion_matrices"]
    assert matrices["0.3"] == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert matrices["0.7"] == [[1, 0, 0], [0, 0, 2], [1, 0, 0]]


def test_image_level_by_hand():
    """Photos 1 and 2 have an object: one is found, beside a wrong one; in photo 3 only a wrong one."""
    truth = document(thing(0, 0, 20, 20), thing(0, 0, 20, 20, image_id=2), images=3)
    found = [thing(60, 60, 20, 20, score=0.9), thing(0, 0, 20, 20, score=0.8), thing(60, 60, 20, 20, image_id=3, score=0.7)]
    level = azureml_metrics(truth, found)["box"]["image_level"]
    assert level == {"average_precision": 0.5, "precision": 0.5, "recall": 0.5}


def test_a_checkpoint_may_be_a_name(common, monkeypatch):
    """As --init-weights and model.name may."""
    asked = []
    monkeypatch.setattr(evaluate, "_predict", lambda options, *_: asked.append(options.checkpoint) or [])
    assert evaluate.main([*common, "--checkpoint", "rtmdet-ins_nano_person"]) == 0
    assert load_checkpoint(asked[0]).spec.classes == ("person",)


@pytest.mark.parametrize(("name", "said"), [("nope.pth", "there is no file nope.pth"), ("nope", "neither a known model")])
def test_no_such_checkpoint_is_reported_before_the_work(common, name, said, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "read_annotations", lambda *_: pytest.fail("began to work"))
    assert evaluate.main([*common, "--checkpoint", name]) == 2
    assert (told := capsys.readouterr().err).startswith("jobs.evaluate: --checkpoint: ")
    assert said in told


def test_ctrl_c_is_130(common, monkeypatch, capsys):
    """In one line, and the scratch folder is gone."""
    scratch = []

    def interrupted(_, annotations, __):
        scratch.append(annotations.coco_json)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_predict", interrupted)
    assert evaluate.main([*common, *UNUSED_URL]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "jobs.evaluate: interrupted"
    assert not scratch[0].exists()


def test_a_key_that_is_missing_is_asked_for(common, capsys):
    with stub_service(key="right") as stub:
        assert evaluate.main([*common, "--url", stub.url]) == 2
    assert "name its variable with --key-env" in capsys.readouterr().err


def test_a_gpu_that_is_full_is_reported(common, model_file, monkeypatch, capsys):
    """In a line that says what to do."""

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(evaluate, "predict_with_mmdet", fails)
    assert evaluate.main([*common, "--checkpoint", str(model_file)]) == 2
    assert "a smaller --image-size needs less" in (said := capsys.readouterr().err)
    assert "jobs.evaluate: " in said.splitlines()[-1]
