"""Exit status and message of commands that fail."""

import argparse
import importlib
import signal

import pytest

from jobs import command_line
from jobs.command_line import CommandFault, check_outputs, cli_errors
from pipeline.errors import ConfigurationError


def failing(error, *more, **how):
    """The status of a command that raises this."""

    @cli_errors("prog", *more, **how)
    def main():
        raise error

    return main()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.json"), "prog: a.json: No such file or directory\n"),
        (ConnectionError("no service"), "prog: no service\n"),
        (ConfigurationError("no such model"), "prog: no such model\n"),
        (CommandFault("a folder"), "prog: a folder\n"),
        (KeyError("asked for"), "prog: 'asked for'\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_is_one_line(error, said, capsys):
    assert failing(error, KeyError, status=2) == 2
    assert capsys.readouterr().err == said


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    """In the log of a job, where a bar would be nothing or one endless line."""
    monkeypatch.setattr(command_line, "LINE_EVERY_S", 0)
    assert list(command_line.progress([7, 8, 9])) == list(command_line.progress(iter([7, 8, 9]))) == [7, 8, 9]
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith("1 of 3 photos, ")
    assert said[4].startswith("1 photos, ")
    monkeypatch.setattr(command_line, "LINE_EVERY_S", 30)
    assert list(command_line.progress([7], "picture", 1)) == [7]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "x", ""])
@pytest.mark.parametrize("kind", [command_line.amount, command_line.fraction, command_line.count, command_line.count_from_0])
def test_numbers_that_an_option_does_not_take(kind, text):
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)
    assert kind("1") == 1


def test_ctrl_c_is_130(capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def test_sigterm_ends_as_ctrl_c_does(capsys):
    """What is open is closed; the handler that was there is back."""
    closed = []

    @cli_errors("prog")
    def main():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            closed.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert main() == 143
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_an_output_is_not_another_file_of_the_command(tmp_path):
    """Neither an input nor another output, whatever the path or link; names that are no files, and outputs not asked for, are fine."""
    photos, link = tmp_path / "val.json", tmp_path / "link.json"
    photos.write_text("{}")
    link.symlink_to(photos)
    inputs = {"--annotations": photos, "--checkpoint": "rtmdet-ins_nano_person", "--results": None}
    check_outputs({"--output": tmp_path / "metrics.json", "--plot": None}, inputs)
    for output in (photos, link, tmp_path / "." / ".." / tmp_path.name / "val.json"):
        with pytest.raises(CommandFault, match="--output and --annotations are the same file"):
            check_outputs({"--output": output}, inputs)
    new = tmp_path / "new.json"
    with pytest.raises(CommandFault, match="--output and --save-results are the same file"):
        check_outputs({"--save-results": new, "--output": new}, inputs)
    with pytest.raises(CommandFault, match=r"--output: .* is a folder"):
        check_outputs({"--output": tmp_path}, inputs)


@pytest.mark.parametrize(
    "command",
    [
        ("jobs.evaluate", "--annotations", "FILE", "--images", ".", "--results", "r.json", "--output", "FILE"),
        ("jobs.evaluate", "--annotations", "a.json", "--images", ".", "--results", "FILE", "--save-results", "FILE"),
        ("jobs.evaluate", "--annotations", "a.json", "--images", ".", "--results", "r.json", "--output", "new", "--plot", "new"),
        ("jobs.check_data", "FILE", "--images", ".", "--output", "FILE"),
        ("jobs.compare", ".", "FILE", "other.jsonl", "--page", "FILE"),
        ("jobs.export", "FILE.pth", "--output", "FILE.pth"),
    ],
    ids=" ".join,
)
def test_no_command_writes_over_its_input(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "FILE.pth"):
        (tmp_path / name).write_text("precious")
    module, *arguments = command
    assert importlib.import_module(module).main(arguments) in (1, 2)
    assert "are the same file" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"FILE": "precious", "FILE.pth": "precious"}
