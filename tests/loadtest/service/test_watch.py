import multiprocessing
import os
import time

import psutil

from loadtest.service.scrape import Histogram, Snapshot
from loadtest.service.watch import Watch, watched


def burn(until):
    while time.time() < until:
        pass


def test_sees_cpu_and_memory_of_the_processes_that_are_there():
    me = psutil.Process(os.getpid())
    busy = multiprocessing.get_context("fork").Process(target=burn, args=(time.time() + 1.2,))
    with Watch(lambda: [me, *me.children()], interval_s=0.3) as watch:
        busy.start()
        busy.join()
    assert len(watch.samples) >= 3
    assert watch.samples[0].cores == {}
    assert max(sum(sample.cores.values()) for sample in watch.samples) > 0.2
    assert all(sum(sample.memory_mb.values()) > 1 for sample in watch.samples)


def test_a_process_that_has_just_ended_is_left_out():
    gone = multiprocessing.get_context("fork").Process(target=burn, args=(0,))
    gone.start()
    process = psutil.Process(gone.pid)
    gone.join()
    with Watch(lambda: [process], interval_s=10) as watch:
        pass
    assert watch.samples[0].memory_mb == {}


def test_gives_a_report_its_numbers():
    during = Snapshot(
        Histogram(((1.0, 2), (8.0, 2))), Histogram(((5.0, 18),)), {"detector": Histogram(((10.0, 18),))}, {"detector": 18}
    )
    result = watched([], during)
    assert result["batches"]["mean"] == 4.5
    assert list(result["stages"]) == ["detector"]
    assert result["stages"]["detector"]["images"] == 18
