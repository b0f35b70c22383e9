"""Client of the RTMDet-Ins scoring service.

Client(url, key).score("photo.jpg") ─▶ Result(objects) ─▶ draw(), to_coco(), to_supervision()
"""

from rtmdet_ins_client.client import Client, ScoringError
from rtmdet_ins_client.result import Found, Result

__all__ = ["Client", "Found", "Result", "ScoringError"]
