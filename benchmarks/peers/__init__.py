"""What others do, measured beside ours. Never imported by the service."""
