"""HTTP in front of the deployments, and what starts and checks the service.

http/       from a request to its response, and the pages for browsers (their files: playground/, docs/)
config/     the checks of a serve_config.yaml
commands    start (local_run), config_file, keys; app, which Ray Serve calls, builds the application
"""
