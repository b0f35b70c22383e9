"""How the Ingress sends images through the stages.

a request ─▶ admission (pace, url_hosts) ─▶ graph ─▶ grouping (pace) ─▶ calls of the stages
"""
