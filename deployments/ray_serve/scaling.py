"""Autoscaling policy of the ImageLoaders: by calls that decode, not by calls that wait for a URL.

ImageLoader.record_autoscaling_stats ─▶ Ray's controller ─▶ by_decoding ─▶ replicas, within Ray's own delays, factors and bounds

Set in serve_config.gpu.yaml as `autoscaling_config.policy.policy_function`. Ray's default counts every call in flight: a few hundred slow
URLs, which need no CPU, would start all replicas.
"""

from __future__ import annotations

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

DECODING = "decoding"
"""Name of the metric: calls whose images are decoded or wait for a decoder. A call counts by the share of its images."""


def by_decoding(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The number of replicas for `target_ongoing_requests` decoding calls each; called by Ray.

    Returns:
        The number of replicas, not rounded, and an empty state. Until a replica has reported the metric, the result of Ray's default
        policy.
    """
    calls = (context.aggregated_metrics or {}).get(DECODING)
    if not calls or context.config is None:
        wanted, state = replica_queue_length_autoscaling_policy(context)
        return float(wanted), state
    return sum(calls.values()) / context.config.get_target_ongoing_requests(), {}
