"""Other servers, measured against this service. Never imported by it."""
