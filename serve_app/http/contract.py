"""Parses and checks the JSON body of `POST /score`; errors name the place in the body.

    bytes ─▶ parse_score_request ─▶ ScoreRequest(images, params)

Images are not decoded here: they stay base64 text or URLs. `input_data` follows AzureML's scorer for
mmd-3x-rtmdet-ins_x_8xb16-300e_coco; `params` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from deployments.params import ScoreParams, parse_params
from pipeline.errors import InvalidRequest, LimitExceeded, quoted
from serve_app.http.long_strings import cut_before, cut_out, has_more_than

INPUT_DATA_MISSING = "A value is not provided for the 'input_data' parameter."


class InputData(BaseModel):
    """A table of images: `columns`, optional `index`, and `data`: a flat list, or rows with one cell per column. (Documents the body.)"""

    model_config = ConfigDict(extra="forbid")

    columns: list[str] = Field(min_length=1, description="`image`; other columns are ignored.", examples=[["image"]])
    index: list[int | str] | None = None
    data: list[str] | list[list[Any]] = Field(
        description="Images as base64 text, data: URL or http(s) URL: a flat list, or rows with one cell per column."
    )


class ScoreBody(BaseModel):
    """Body of POST /score; unknown top-level keys are ignored. (Documents the body.)"""

    input_data: InputData
    params: ScoreParams = ScoreParams()


MAX_JSON_VALUES = 100_000
"""Most commas and opening brackets in a body. A full request has some hundreds and base64 text has none, but ten million empty lists
fit into 32 MB of text and take 700 MB of memory when parsed. orjson limits the depth to 1024. A body of fewer bytes cannot have more, and
takes 0.03 ms to parse, so nothing is counted or cut out of it."""

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark: PowerShell and some editors write it before JSON; AzureML's server accepts it too."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A checked request: `images` in order, as base64 text, URL or file bytes; its `params`; the values of `draw` in a form."""

    images: Sequence[str | bytes]
    params: ScoreParams
    draw: tuple[str, ...] = ()


def parse_score_request(body: bytes | bytearray) -> ScoreRequest:
    """Read a `POST /score` body.

    Args:
        body: the JSON as received. The number of images is checked later, at admission.
    Raises:
        InvalidRequest: the contract is broken; the message names the place.
        LimitExceeded: too many JSON values.
    """
    if not body:
        raise InvalidRequest("The request body is empty; expected a JSON object with 'input_data'.")
    text, strings = cut_out(body) if len(body) > MAX_JSON_VALUES else (body, {})
    if has_more_than(MAX_JSON_VALUES, (b",", b"[", b"{"), text):
        raise LimitExceeded(f"The request body holds more than {MAX_JSON_VALUES} JSON values.", code="body_too_large")
    try:
        document = orjson.loads(memoryview(text)[len(BOM) :] if body.startswith(BOM) else text)
    except orjson.JSONDecodeError as error:
        if "UTF-8" in error.msg or "\0" in error.doc[:2]:  # the second: ASCII characters as UTF-16
            raise InvalidRequest(
                "The request body is not UTF-8, as JSON must be, whatever charset its Content-Type names. (A photo as it is needs "
                "a Content-Type such as image/jpeg.)"
            ) from error
        place = _place(error, strings)
        raise InvalidRequest(f"The request body is not valid JSON: {error.msg}: {place}.") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"The request body must be a JSON object, got {_json_type(document)}.")
    if document.get("input_data") is None:
        raise InvalidRequest(INPUT_DATA_MISSING)
    images = [strings.get(image, image) for image in _parse_images(document["input_data"])]
    return ScoreRequest(images, parse_params(document.get("params")))


def _place(error: orjson.JSONDecodeError, strings: dict[str, str]) -> str:
    """Where the JSON is invalid, as a position in the body: the parser saw short tokens instead of long strings."""
    line = error.doc.rfind("\n", 0, error.pos) + 1
    position, line_start = (place + cut_before(place, error.doc, strings) for place in (error.pos, line))
    return f"line {error.lineno} column {position - line_start + 1} (char {position})"


def _parse_images(table: Any) -> list[str]:
    if not isinstance(table, dict):
        raise InvalidRequest(f"'input_data' must be an object with 'columns' and 'data', got {_json_type(table)}.")
    unknown = set(table) - {"columns", "index", "data"}
    if unknown:
        raise InvalidRequest(f"'input_data' has unknown key(s) {quoted(unknown)}; known keys: columns, index, data.")
    columns = table.get("columns")
    if not isinstance(columns, list) or columns.count("image") != 1:
        raise InvalidRequest('\'input_data.columns\' must be a list with "image" in it once, such as ["image"].')
    data = table.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"'input_data.data' must be a list of images, got {_json_type(data)}.")
    _check_index(table.get("index"), len(data))
    column = columns.index("image")
    return [_parse_row(row, position, column, len(columns)) for position, row in enumerate(data)]


def _check_index(index: Any, length: int) -> None:
    if index is None:
        return
    if not isinstance(index, list):
        raise InvalidRequest(f"'input_data.index' must be a list, got {_json_type(index)}.")
    if len(index) != length:
        raise InvalidRequest(f"'input_data.index' has {len(index)} entries but 'input_data.data' has {length}.")


def _parse_row(row: Any, position: int, column: int, columns: int) -> str:
    """The image of one row: the row itself, or its cell in the column `image`. Other columns are ignored, as MLflow does."""
    where = f"'input_data.data[{position}]'"
    cells = row if isinstance(row, list) else [row]
    if len(cells) != columns:
        raise InvalidRequest(f"{where} must hold {_cells(columns)}, got {len(cells)}.")
    if isinstance(row, list):
        where = f"'input_data.data[{position}][{column}]'"
    if not isinstance(cells[column], str):
        raise InvalidRequest(f"{where} must be a string (base64 or URL), got {_json_type(cells[column])}.")
    cell: str = cells[column]
    return cell


def _cells(count: int) -> str:
    return "one cell" if count == 1 else f"{count} cells"


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
