"""What trials draw, and how they end."""

import os
import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow")

from jobs.sweeping import trials
from jobs.sweeping.search_space import read_variation
from jobs.sweeping.trials import _domain, ending_on_signals


@pytest.mark.parametrize(
    ("variation", "drawn"),
    [
        ("image-size=320..480", {320, 352, 384, 416, 448, 480}),
        ("image-size=32..320", set(range(32, 321, 32))),
        ("workers=0..1", {0, 1}),
        ("seed=1..10", set(range(1, 11))),
    ],
)
def test_whole_numbers_are_drawn_for_options_that_take_them(variation, drawn):
    """Both ends are among them."""
    assert set(_domain(read_variation(variation)[1]).sample(size=500)) == drawn


def test_fractions_are_drawn_for_options_that_take_them():
    """Of a range whose ends are whole, too."""
    drawn = _domain(read_variation("clip-grad=2..20")[1]).sample(size=50)
    assert len({round(value, 3) for value in drawn}) > 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_trials_with_what_they_have(number):
    """As Ray Tune ends on SIGUSR1; a second one, and one before Tune listens, ends at once."""
    ended, before = [], signal.getsignal(signal.SIGUSR1)
    with ending_on_signals() as came:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        signal.signal(signal.SIGUSR1, lambda *_: ended.append(1))
        os.kill(os.getpid(), number)
        assert (came, ended) == ([number], [1])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    signal.signal(signal.SIGUSR1, before)


def test_a_trial_gets_what_the_sweep_has_checked(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(trials, "finetune", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(trials.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a1"))
    base = "--train a --train-images b --val-share 0.3 --work-dir c".split()
    trials._train({"lr": 0.001}, base, tmp_path, tmp_path / "gone", {"b.png": "a.png"})
    ((settings, _, copies),) = given
    assert (settings.work_dir, settings.lr, copies) == (tmp_path / "a1", 0.001, {"b.png": "a.png"})
