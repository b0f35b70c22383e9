"""From what a request names (URL, base64, bytes, array) to pixels ready for the network.

Never trusts its input: every address is judged before it is connected to, and files are decoded in processes of their own.
Knows nothing of the model but the side of its input.
"""

__all__ = ["address_policy", "decode", "decoder_options", "decoder_pool", "fetch", "letterbox", "load", "source"]
