"""Sends a service requests, by schedule or in a closed loop. Knows its URL only: the service may run anywhere.

requests        photos (by URL: image_server) ─▶ traffic: bodies, and checks of the responses
sending         traffic ─▶ openloop ─▶ scenarios; rate_search finds the highest rate that meets a bound
with Locust     shapes: the number of users of loadtest/locustfile.py
"""
