"""From the cost of an image to the replicas for a rate.

costs (engine_alone) ─▶ costs.json ─▶ planner ─▶ replicas, CPUs and GPUs
                                         └─▶ plan_check: the prediction against a run with simulated detectors
"""
