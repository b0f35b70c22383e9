"""How the Ingress sends images through the stages.

a request ─▶ admission (pace) ─▶ graph ─▶ grouping (pace) ─▶ calls of the stages
"""
