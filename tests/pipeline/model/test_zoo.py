"""Names to files: embedded, official (from a local server), and the user's own; the command line."""

import hashlib
import io

import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from pipeline.errors import CheckpointError, ConfigurationError, DownloadError
from pipeline.model import zoo
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors
from pipeline.model.spec import build_network, nano_spec, official_spec
from tests.support.file_server import file_server

TINY = "rtmdet-ins_tiny_8xb32-300e_coco"


def test_official_names_and_urls():
    """All five sizes, found through mmdet's own metafile, each with its hash in the file name."""
    urls = zoo.official_urls()
    assert {name.split("_")[1] for name in urls} == {"tiny", "s", "m", "l", "x"}
    assert urls["rtmdet-ins_x_8xb16-300e_coco"].endswith("rtmdet-ins_x_8xb16-300e_coco_20221124_111313-33d4595b.pth")


def test_embedded_model_needs_nothing(tmp_path):
    """It is found by name, without a download, and says what it is."""
    path = zoo.locate("rtmdet-ins_nano_person", tmp_path)
    assert path.is_file()
    assert zoo.read_header("rtmdet-ins_nano_person", tmp_path).classes == ("person",)
    assert not list(tmp_path.iterdir())


def test_header_of_an_official_model_needs_no_download(tmp_path):
    """Its classes and size come from mmdet's configuration."""
    header = zoo.read_header(TINY, tmp_path)
    assert (len(header.classes), header.input_size) == (80, 640)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [("rtmdet-ins_huge", "neither a known model"), ("nowhere/mine.pth", "there is no file"), ("", "neither a known model")],
)
def test_unknown_names_list_the_known(name, message):
    """A wrong name is an error that shows the right ones."""
    with pytest.raises(ConfigurationError, match=message):
        zoo.locate(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mmd-3x-rtmdet-ins_x_8xb16-300e_coco", "rtmdet-ins_x_8xb16-300e_coco"),
        ("rtmdet-ins_x", "rtmdet-ins_x_8xb16-300e_coco"),
        ("rtmdet-ins_x_8xb32-300e_coco", "rtmdet-ins_x_8xb16-300e_coco"),
        ("rtmdet-ins_nano", "rtmdet-ins_nano_person"),
        ("rtmdet_ins_tiny_8xb32-300e_coco", TINY),
        ("yolo11n", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_suggested(name, near):
    """AzureML's name leads to mmdet's, and no size to another."""
    with pytest.raises(ConfigurationError) as raised:
        zoo.locate(name, setting="--here")
    assert raised.value.message.startswith("--here: ")
    assert raised.value.message.partition(" Did you mean ")[2] == (f"{near}?" if near else "")


def test_file_without_description(tmp_path):
    """A safetensors file of something else."""
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    with pytest.raises(CheckpointError):
        zoo.read_header(str(path))


@pytest.fixture(scope="module")
def released() -> bytes:
    """A checkpoint with the structure of the released ones: meta, message hub with histories, EMA copies."""
    network = build_network(official_spec(TINY))
    torch.manual_seed(0)
    weights = network.state_dict()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "meta": {"epoch": 300, "dataset_meta": {"CLASSES": official_spec(TINY).classes}, "mmengine_version": "0.1.0"},
        "state_dict": weights,
        "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {}, "resumed_keys": {}},
        "ema_state_dict": {"steps": torch.tensor(1), **{f"module.{name}": value for name, value in weights.items()}},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_official_model_is_downloaded_and_loads(released, tmp_path, monkeypatch):
    """By name, from a local server in place of OpenMMLab's: fetched once, checked, loaded without running code."""
    digest = hashlib.sha256(released).hexdigest()[:8]
    with file_server(released, f"{TINY}_20221130_151727-{digest}.pth") as server:
        monkeypatch.setattr(zoo, "official_urls", lambda: {TINY: server.url})
        path = zoo.locate(TINY, tmp_path)
        assert zoo.locate(TINY, tmp_path) == path
        assert len(server.requests) == 1
    assert load_checkpoint(path).spec.name == TINY


def test_wrong_file_at_the_official_place(released, tmp_path, monkeypatch):
    """A file whose hash is not the name's is refused."""
    with file_server(released, f"{TINY}_20221130_151727-ec670f7e.pth") as server:
        monkeypatch.setattr(zoo, "official_urls", lambda: {TINY: server.url})
        with pytest.raises(DownloadError, match="ec670f7e"):
            zoo.locate(TINY, tmp_path)


def test_command_line(tmp_path, monkeypatch, capsys):
    """list shows all, download without internet explains, verify tells good from bad."""
    arguments = ["--cache-dir", str(tmp_path)]
    assert zoo.main(["list", *arguments]) == 0
    assert "rtmdet-ins_nano_person" in capsys.readouterr().out
    monkeypatch.setattr(zoo, "official_urls", lambda: {TINY: "http://127.0.0.1:9/tiny-ec670f7e.pth"})
    assert zoo.main(["download", TINY, *arguments]) == 1
    assert "copy it to" in capsys.readouterr().err
    assert zoo.main(["verify", TINY, *arguments]) == 1
    (tmp_path / "checkpoints" / "tiny-ec670f7e.pth").write_bytes(b"wrong")
    assert zoo.main(["verify", *arguments]) == 1
    assert "WRONG HASH" in capsys.readouterr().out


def test_import_gives_a_bare_state_dict_labels_and_a_size(tmp_path, capsys):
    """What a file does not say is told once, on the command line."""
    bare, output = tmp_path / "bare.pth", tmp_path / "mine.safetensors"
    torch.save({f"model.{name}": value for name, value in build_network(nano_spec()).state_dict().items()}, bare)
    command = ["import", str(bare), "--output", str(output)]
    assert zoo.main(command) == 1
    assert "does not contain the labels" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("cat\n", encoding="utf-8-sig")
    assert zoo.main([*command, "--labels", str(tmp_path / "labels.txt"), "--image-size", "320"]) == 0
    assert "320 px, 1 labels: cat" in capsys.readouterr().out
    assert zoo.read_header(str(output)) == zoo.ModelHeader(("cat",), 320)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_import_of_a_described_checkpoint(tmp_path, capsys, suffix):
    """As jobs.finetune writes them: labels and size that are given replace the file's; too many labels are refused."""
    spec = nano_spec(input_size=320)
    checkpoint = Checkpoint(spec, build_network(spec).state_dict())
    source, output = tmp_path / f"own{suffix}", tmp_path / "mine.safetensors"
    if suffix == ".pth":
        description = {"name": spec.name, "classes": list(spec.classes), "input_size": 320, "config": spec.config}
        torch.save({"state_dict": checkpoint.state_dict, "meta": {"model_spec": description}}, source)
    else:
        save_safetensors(checkpoint, source)
    command = ["import", str(source), "--output", str(output)]
    assert zoo.main(command) == 0
    assert zoo.read_header(str(output)) == zoo.ModelHeader(("person",), 320)
    assert zoo.main([*command, "--labels", "cat", "--image-size", "640"]) == 0
    assert zoo.read_header(str(output)) == zoo.ModelHeader(("cat",), 640)
    capsys.readouterr()
    for more, said in (
        (("--labels", "cat,dog"), "2 labels for 1 class channels"),
        (("--image-size", "321"), "multiple of 32, got 321"),
    ):
        assert zoo.main([*command, *more]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--labels", " , "), ("--labels", ""), ("--image-size", "0")])
def test_import_with_nothing_given(tmp_path, more):
    with pytest.raises(SystemExit):
        zoo.main(["import", "own.pth", "--output", str(tmp_path / "mine.safetensors"), *more])


@pytest.mark.parametrize("count", [2, 80], ids=["two", "more than a file name has room for"])
def test_import_with_too_many_labels_is_refused(tmp_path, capsys, count):
    torch.save(build_network(nano_spec()).state_dict(), tmp_path / "bare.pth")
    command = ["import", str(tmp_path / "bare.pth"), "--output", str(tmp_path / "mine.safetensors")]
    labels = ",".join(f"label {number}" for number in range(count))
    assert zoo.main([*command, "--labels", labels, "--image-size", "320"]) == 1
    assert f"{count} labels for 1 class channels" in capsys.readouterr().err
