import pytest

from loadtest.service.scrape import Histogram, metrics_text, parse

TEXT = """\
# TYPE ray_rtmdet_batch_size histogram
ray_rtmdet_batch_size_bucket{replica="a",le="1.0"} 1
ray_rtmdet_batch_size_bucket{replica="a",le="8.0"} 4
ray_rtmdet_batch_size_bucket{replica="a",le="+Inf"} 4
ray_rtmdet_batch_size_bucket{replica="b",le="1.0"} 0
ray_rtmdet_batch_size_bucket{replica="b",le="8.0"} 2
ray_rtmdet_batch_size_bucket{replica="b",le="+Inf"} 2
# TYPE ray_rtmdet_stage_latency_ms histogram
ray_rtmdet_stage_latency_ms_bucket{stage="detector",le="10.0"} 3
ray_rtmdet_stage_latency_ms_bucket{stage="detector",le="+Inf"} 5
# TYPE ray_rtmdet_stage_images_total counter
ray_rtmdet_stage_images_total{stage="detector",replica="a"} 20
ray_rtmdet_stage_images_total{stage="detector",replica="b"} 13
# TYPE ray_other gauge
ray_other 7
"""


def test_sums_over_replicas_and_undoes_the_cumulation():
    seen = parse(TEXT)
    assert seen.sizes == Histogram(((1.0, 1), (8.0, 5), (float("inf"), 0)))
    assert seen.latencies["detector"].counts == ((10.0, 3), (float("inf"), 2))
    assert seen.images == {"detector": 33}
    assert seen.mean_batch == pytest.approx(33 / 6)


def test_a_difference_is_what_happened_in_between():
    during = parse(TEXT.replace('replica="a"} 20', 'replica="a"} 60').replace('"a",le="1.0"} 1', '"a",le="1.0"} 4')) - parse(TEXT)
    assert during.images == {"detector": 40}
    assert during.sizes.counts[0] == (1.0, 3)


def test_of_nothing_there_is_no_mean_and_no_quantile():
    assert parse("").mean_batch is None
    assert Histogram().quantile(0.5) is None


def test_quantiles_are_linear_within_a_bucket():
    counts = Histogram(((10.0, 2), (20.0, 2), (float("inf"), 0)))
    assert counts.quantile(0.5) == pytest.approx(10)
    assert counts.quantile(0.75) == pytest.approx(15)
    assert counts.quantile(1.0) == pytest.approx(20)


def test_the_last_bucket_has_no_end():
    assert Histogram(((10.0, 0), (float("inf"), 5))).quantile(0.5) == 10


def test_says_where_it_looked_for_exporters(tmp_path):
    with pytest.raises(RuntimeError, match=r"missing\.json"):
        metrics_text(tmp_path / "missing.json")
