"""From a request to its response, in an Ingress replica.

a request   proxy ─▶ guard (keys) ─▶ routes ─▶ body ─▶ contract (long_strings) or photo_body (form) ─▶ deployments.ingress ─▶ responses
documents   openapi, swagger, pages
exposure    refuses to listen beyond loopback without keys
"""
