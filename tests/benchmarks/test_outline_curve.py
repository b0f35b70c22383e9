"""The curve of outlines: what is said where nothing can be measured."""

from benchmarks import outline_curve


def test_missing_annotations_are_one_line(tmp_path, capsys):
    assert outline_curve.main(["--coco", str(tmp_path / "nope")]) == 1
    assert capsys.readouterr().err == f"benchmarks.outline_curve: {tmp_path / 'nope'}: No such file or directory\n"
