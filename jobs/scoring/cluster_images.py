"""Reads the images of a batch on a cluster: bytes, base64, URLs, files, and objects of a store such as S3."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from jobs.command_line import reason_of
from jobs.scoring.cluster_inputs import FILE, UNREADABLE, filesystem_of
from jobs.scoring.service_client import pauses
from jobs.scoring.tables import InputsError, is_of_the_photo, looks_like_base64, read_file
from pipeline.errors import FetchError, ImageError, ServiceError
from pipeline.images.fetch import Fetcher, FetchPolicy
from pipeline.images.source import parse_source

STORAGE_RETRIES = 7
"""Retries of a photo that its storage does not give; with their pauses about a minute."""


class NoRow(ServiceError):
    """A photo that the storage, the service or this machine failed on; it gets no row."""


def is_web_url(text: str) -> bool:
    """Whether a row's image is fetched over HTTP."""
    return text[:8].lower().startswith(("http://", "https://"))


class Images:
    """Reads the bytes of a row's image, whatever it is."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy, self._filesystems = policy, dict[str, Any]()

    async def read(self, fetcher: Fetcher, image: Any) -> bytes:
        """The encoded image.

        Raises:
            NoRow: its storage does not give it, after `STORAGE_RETRIES` either.
            ServiceError: it cannot be read or fetched, or there is none.
        """
        for pause_s in pauses(STORAGE_RETRIES):
            try:
                return await self._read(fetcher, image)
            except NoRow:
                await asyncio.sleep(pause_s)
        return await self._read(fetcher, image)

    async def _read(self, fetcher: Fetcher, image: Any) -> bytes:
        if isinstance(image, bytes):
            return image
        text = "" if image is None or image != image else str(image)  # in a column without any value they are NaN
        if not text or text.startswith(UNREADABLE):
            raise ImageError(text.removeprefix(UNREADABLE) or "There is no image in this row.", code="image_not_readable")
        if is_web_url(text):
            return await fetcher.fetch(text)
        if looks_like_base64(text) or text[:5].lower() == "data:":  # before paths: a JPEG in base64 begins with a slash
            return cast(bytes, parse_source(text, self._policy.max_bytes))
        return await asyncio.to_thread(self._read_file, text)

    def _read_file(self, uri: str) -> bytes:
        try:
            max_bytes = self._policy.max_bytes + 1
            if uri.startswith(FILE):
                return read_file(Path(os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE)))), max_bytes)
            scheme, separator, place = uri.partition("://")
            if not separator:
                return read_file(Path(uri), max_bytes)
            bucket, _, path = place.partition("/")
            if (store := f"{scheme}://{bucket}") not in self._filesystems:
                self._filesystems[store] = filesystem_of(store)
            filesystem, root = self._filesystems[store]
            with filesystem.open_input_stream(f"{root}/{path}") as stream:
                data: bytes = stream.read(max_bytes)
        except Exception as error:  # of any type: some stores have their own
            reason = f"The file cannot be read: {reason_of(error)}"
            if is_of_the_photo(error.__cause__ if isinstance(error, InputsError) else error):
                raise FetchError(reason, code="image_not_readable") from error
            raise NoRow(f"{uri}: {reason}") from error
        return data
