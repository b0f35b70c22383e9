"""Benchmarks: comparisons with mmdet, other servers and the hardware's limits. Needs a checkout; installed packages do not import it."""
