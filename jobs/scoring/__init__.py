"""Many photos through a running service: what a batch is made of, and a patient HTTP client."""
