"""Rows of a batch, one per photo, and the formats of the files that hold them.

--format  example line, and its readers
jsonl     {"row_number_per_file": 0, "preds": {"boxes": […]}, "file_name": "1.jpg"}
csv       0,"{""boxes"": […]}",1.jpg                  no header: pd.read_csv(f, header=None, names=[…]) in AzureML's batch notebook
boxes     {"filename": "1.jpg", "boxes": […], …}      AzureML's older notebook
parquet   the columns of the first, `preds` as JSON text
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jobs.scoring.tables import InputsError


class Row(NamedTuple):
    """One photo's row, under AzureML's names.

    Args:
        row_number_per_file: in its table; 0 for a photo in a folder.
        preds: the image's object of the contract.
        file_name: of the photo, or of its table.
    """

    row_number_per_file: int
    preds: dict[str, Any]
    file_name: str


@dataclass(frozen=True, slots=True)
class LineFormat:
    """A format with one line of text per row.

    Args:
        start: what every line begins with; empty: a number, a comma, and JSON in quotes.
        encode, decode: one row and its line, without the line break; `decode` raises ValueError, KeyError, IndexError or TypeError.
    """

    start: str
    encode: Callable[[Row], str]
    decode: Callable[[str], Row]

    def is_cut(self, line: bytes) -> bool:
        """Whether this is an incomplete line, cut off while writing."""
        start = self.start.encode()
        return line.startswith(start[: len(line)]) if start else _CUT_CSV.fullmatch(line) is not None


_CUT_CSV = re.compile(rb'\d+(,("(\{.*)?)?)?', re.DOTALL)


def _to_csv(row: Row) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        (row.row_number_per_file, json.dumps(row.preds, ensure_ascii=False), row.file_name)
    )
    return line.getvalue()


def _from_csv(line: str) -> Row:
    number, preds, name = next(csv.reader([line]))
    return Row(int(number), json.loads(preds), name)


def _from_jsonl(line: str) -> Row:
    row = json.loads(line)
    return Row(row["row_number_per_file"], row["preds"], row["file_name"])


def _to_boxes(row: Row) -> str:
    return json.dumps(
        {"filename": row.file_name, **row.preds, "row_number_per_file": row.row_number_per_file}, ensure_ascii=False
    )


def _from_boxes(line: str) -> Row:
    preds = json.loads(line)
    return Row(preds.pop("row_number_per_file"), file_name=preds.pop("filename"), preds=preds)


FORMATS = {
    "jsonl": LineFormat('{"row_number_per_file": ', lambda row: json.dumps(row._asdict(), ensure_ascii=False), _from_jsonl),
    "csv": LineFormat("", _to_csv, _from_csv),
    "boxes": LineFormat('{"filename": ', _to_boxes, _from_boxes),
}
PARQUET = "parquet"


def format_of(output: Path, asked: str | None) -> str:
    """The format asked for, else by the suffix, else JSON lines."""
    suffix = output.suffix.lower().removeprefix(".")
    return asked or (suffix if suffix in (*FORMATS, PARQUET) else "jsonl")


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of an output file in any of the line formats; an incomplete last line is ignored, as the file may still be written.

    A last line without a line break is complete if it is whole JSON; of CSV it may lack the end of a name.

    Raises:
        InputsError: a line is not a row.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            line_format = FORMATS["boxes" if line.startswith(b'{"filename"') else "jsonl" if line.startswith(b"{") else "csv"]
            ended = line.endswith(b"\n")
            try:
                row = decode_row(line_format, line, f"{path}, line {number}: not a line of jobs.batch_score")
            except InputsError:
                if ended:
                    raise
                return
            if ended or line_format.start:
                yield row


def decode_row(line_format: LineFormat, line: bytes, fault: str) -> Row:
    """The row of a line.

    Raises:
        InputsError: it is not a row; the message begins with `fault`.
    """
    try:
        row = line_format.decode(line.decode().rstrip("\r\n"))
        is_named = isinstance(row.file_name, str) and isinstance(row.row_number_per_file, int)
        if not is_named or not isinstance(row.preds["boxes"], list):
            raise ValueError("not a row")
    except (ValueError, KeyError, IndexError, TypeError, StopIteration, AttributeError, csv.Error) as error:
        raise InputsError(f"{fault} ({error!r})") from error
    return row
