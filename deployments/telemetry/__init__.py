"""What an operator sees: metrics (Prometheus), tracing (spans of OpenTelemetry), logs (lines of a replica)."""
