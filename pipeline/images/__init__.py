"""Turns an image given as URL, base64, bytes or array into pixels for the network.

The input is not trusted: every address is checked before connecting, and files are decoded in separate processes.
Depends on the model only by the size of its input.
"""

__all__ = ["address_policy", "decode", "decoder_options", "decoder_pool", "fetch", "letterbox", "load", "node_slots", "source"]
