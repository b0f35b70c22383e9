"""Map function that scores with a running application by its handle; its clients use the same replicas.

image ─▶ bytes, or a URL as it is ─▶ handle.score (`on_error: isolate`) ─▶ preds
                                        └─ overloaded, failed, too late: asked again, PATIENCE_S long; then it gets no row
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from deployments.params import parse_params
from jobs.photos import LIMITS
from jobs.score_by_handle import score
from jobs.scoring.cluster_images import Images, NoRow, is_web_url
from jobs.scoring.cluster_inputs import IMAGE
from jobs.scoring.cluster_stages import Batch, as_listed, with_preds
from jobs.scoring.service_client import PATIENCE_S, TRANSIENT_CODES, pauses
from pipeline.errors import ServiceError
from pipeline.images.fetch import Fetcher, FetchPolicy
from pipeline.masks.encode import objects_to_json
from pipeline.types import ScoredImage

TIMEOUT_S = 120.0
"""Time limit of a call, seconds; the service's `ingress.timeout_s` may be shorter."""


class CallRefused(RuntimeError):
    """The application refuses the call, and would refuse all others."""


class Through:
    """Stage: images to the contract's objects as JSON; counts photos.

    Args:
        application: name in serve_config.yaml.
        params: of the contract.
        tally: of the job.
    """

    def __init__(self, application: str, params: Mapping[str, Any], tally: Any) -> None:
        self._application, self._params, self._tally = application, parse_params({**params, "on_error": "isolate"}), tally

    def __call__(self, batch: Batch) -> Batch:
        batch = as_listed(batch)
        answers = asyncio.run(_read(batch[IMAGE].tolist()))
        images = {index: image for index, image in enumerate(answers) if not isinstance(image, ServiceError)}
        for index, answer in self._scored(images).items():
            answers[index] = _json(answer)
        return with_preds(batch, IMAGE, answers, self._tally)

    def _scored(self, images: dict[int, Any]) -> dict[int, ScoredImage | ServiceError]:
        """An answer for each image, by its number; images with transient errors of the service are retried."""
        answers = self._score_once(images)
        ends, between = time.monotonic() + PATIENCE_S, pauses()
        while again := {index: images[index] for index, answer in answers.items() if _is_transient(answer)}:
            if time.monotonic() > ends:
                break
            time.sleep(next(between))
            answers |= self._score_once(again)
        return answers

    def _score_once(self, images: dict[int, Any]) -> dict[int, ScoredImage | ServiceError]:
        if not images:
            return {}
        try:
            scored = score(list(images.values()), self._params, application=self._application, timeout_s=TIMEOUT_S)
        except ServiceError as error:
            if error.code in TRANSIENT_CODES:
                return dict.fromkeys(images, error)
            raise CallRefused(
                f"{self._application} refuses a call of {len(images)} images (--mini-batch-size): {error}"
            ) from error
        faults = [ServiceError(image.fault.message, code=image.fault.code) if image.fault else None for image in scored]
        return {index: fault or image for index, image, fault in zip(images, scored, faults, strict=True)}


async def _read(images: list[Any]) -> list[Any]:
    """The bytes of each image, a URL unchanged (the service fetches it by its own policy), or an error."""
    policy = FetchPolicy(max_bytes=LIMITS.max_bytes)
    reader, fetcher = Images(policy), Fetcher(policy)

    async def one(image: Any) -> Any:
        try:
            return image if isinstance(image, str) and is_web_url(image) else await reader.read(fetcher, image)
        except ServiceError as error:
            return error

    try:
        return list(await asyncio.gather(*map(one, images)))
    finally:
        await fetcher.aclose()


def _is_transient(answer: ScoredImage | ServiceError) -> bool:
    return isinstance(answer, ServiceError) and answer.code in TRANSIENT_CODES


def _json(answer: ScoredImage | ServiceError) -> bytes | ServiceError:
    if isinstance(answer, ScoredImage):
        return objects_to_json(answer.objects)
    return NoRow(answer.message, code=answer.code) if _is_transient(answer) else answer
