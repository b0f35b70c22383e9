"""Batch scoring: inputs, outputs, an HTTP client with retries, and the stages of a batch on a cluster."""
