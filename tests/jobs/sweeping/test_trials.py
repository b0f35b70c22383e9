"""How trials end."""

import os
import signal

import pytest

pytest.importorskip("pyarrow")

from jobs.sweeping.trials import ending_on_signals


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
