"""The checks of a serve_config.yaml, for the command serve_app.config_file.

the file     schema: keys and types; relations: settings against each other; ray_env: the variables beside it
Kubernetes   manifest: whether the pods of a KubeRay manifest reach the service and hold its replicas
its effect   capacity: the images/s that it allows; rollout: what an update with it needs
"""
