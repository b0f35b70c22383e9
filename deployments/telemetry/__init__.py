"""What an operator sees: metrics (Prometheus), tracing (spans of OpenTelemetry), access_log (lines kept off stderr)."""
