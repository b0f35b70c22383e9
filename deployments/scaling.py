"""How many ImageLoaders there should be: by the decoding that they do, not by the URLs that they wait for.

ImageLoader.record_autoscaling_stats ─▶ Ray's controller ─▶ by_decoding ─▶ replicas, within Ray's own delays, factors and bounds

Set in serve_config.gpu.yaml as `autoscaling_config.policy.policy_function`. Ray's default counts every call in flight: a few hundred slow
URLs, which cost nothing, would start all replicas.
"""

from __future__ import annotations

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

DECODING = "decoding"
"""The metric: calls whose images are being decoded, or wait for a decoder. A call of which half are there counts for a half."""


def by_decoding(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas for `target_ongoing_requests` calls of decoding each.

    Returns:
        The number wanted, not rounded, and no state of our own. Before a replica has reported, what Ray's default says.
    """
    calls = (context.aggregated_metrics or {}).get(DECODING)
    if not calls or context.config is None:
        wanted, state = replica_queue_length_autoscaling_policy(context)
        return float(wanted), state
    return sum(calls.values()) / context.config.get_target_ongoing_requests(), {}
