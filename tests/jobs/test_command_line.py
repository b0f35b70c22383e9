"""Exit status and message of commands that fail."""

import argparse
import signal

import pytest

from jobs import command_line
from jobs.command_line import CommandFault, cli_errors
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
