"""HTTP in front of the deployments, and what starts and checks the service.

a request    proxy ─▶ guard (keys) ─▶ http ─▶ body ─▶ contract (long_strings) or photo_body (form) ─▶ deployments.ingress ─▶ responses
documents    openapi, swagger, pages: the files in playground/ and docs/
starting     start (ray_env) ─▶ local_run ─▶ app, which Ray Serve calls; exposure refuses to listen beyond loopback without keys
checking     config_file ─▶ config_keys, config_relations, capacity, rollout
"""
