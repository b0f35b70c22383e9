"""The output file of a batch: one row per photo. Existing rows are skipped on the next run, and only one run can write a file at a time.

    preds.jsonl           rows
    preds.jsonl.run       service, model, parameters and source of the rows; locked while a run writes

Parquet files cannot be appended to: rows are written to preds.parquet.jsonl, which is converted at the end of each run.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

from jobs.atomic_write import append_atomically, atomic_file
from jobs.scoring.batch_inputs import RUN_SUFFIX
from jobs.scoring.rows import FORMATS, PARQUET, Row, decode_row, read_rows
from jobs.scoring.tables import InputsError

PARQUET_ROWS_AT_ONCE = 1000


def lock_output(run_file: IO[Any] | FileIO, output: Path | str) -> None:
    """Lock an output by its open run file, until that is closed.

    Raises:
        InputsError: another run has locked it.
    """
    try:
        fcntl.flock(run_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use(output) from error


def in_use(output: Path | str) -> InputsError:
    """The error for an output that another run is writing."""
    return InputsError(f"{output}: another run is writing it. Wait for its end, or take another --output")


def facts_before(output: Path) -> dict[str, Any]:
    """What an earlier run recorded of the rows in an output by `BatchOutput.made_by`; empty if there was none.

    Raises:
        InputsError: the record is of something else.
    """
    path = _run_path(output)
    try:
        return dict(json.loads(path.read_bytes() or "{}")) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise InputsError(f"{path}: not of this job; take another --output") from error


def _run_path(output: Path) -> Path:
    return Path(f"{output}{RUN_SUFFIX}")


class BatchOutput:
    """An output file, locked for this run until it is closed.

    Args:
        path: new, or of an earlier run; missing folders are created.
        format_name: of `format_of`.
    Attributes:
        rows: the file that rows are appended to.
        written_at: when the last row of an earlier run was written, seconds since 1970; infinite without one.
    Raises:
        InputsError: another run writes it, or it holds something else.
    """

    def __init__(self, path: Path, format_name: str) -> None:
        self.path, self._format_name = path, format_name
        if format_name == PARQUET:
            _pyarrow()
        self._line_format = FORMATS["jsonl" if format_name == PARQUET else format_name]
        self.rows = path.with_name(path.name + ".jsonl") if format_name == PARQUET else path
        for file in {path, self.rows}:
            if file.exists() and not file.is_file():  # of /dev/full, say, the first line never ends
                raise InputsError(f"{file} is not a file: name one for --output, new or of an earlier run")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written_at = self.rows.stat().st_mtime if self.rows.exists() else math.inf
        self._file: FileIO | None = None
        self._run_path = _run_path(path)
        self._run_file = self._run_path.open("ab+", buffering=0)
        try:
            lock_output(self._run_file, path)
        except InputsError:
            self._run_file.close()
            raise
        try:
            self._done = self._read_done()
        except BaseException:
            self._close_run_file()
            raise

    def made_by(self, facts: dict[str, Any]) -> str:
        """Compare what determines the rows with the record of an earlier run, or record it.

        Args:
            facts: JSON values by name.
        Returns:
            A warning for the user, or an empty string.
        Raises:
            InputsError: an earlier run had other values.
        """
        facts = facts | {"format": self._format_name}
        if not (earlier := facts_before(self.path)):
            append_atomically(self._run_file, json.dumps(facts, indent=1).encode())
            has_rows = self.rows.exists() and self.rows.stat().st_size
            return f"without {self._run_path}, nothing tells whether the rows in {self.path} were made alike" if has_rows else ""
        if changed := [key for key in {**earlier, **facts} if earlier.get(key, facts.get(key)) != facts.get(key)]:
            changes = "; ".join(f"{key} was {earlier.get(key)!r}, is now {facts.get(key)!r}" for key in changed)
            raise InputsError(
                f"{self.path} holds rows of a run with other settings: {changes}. Use another --output; or, to mix them in one file, "
                f"delete {self._run_path}"
            )
        return ""

    def _read_done(self) -> sqlite3.Connection:
        """Read the keys of the existing rows into a temporary SQLite file; truncates an incomplete last line."""
        done = sqlite3.connect("")
        done.execute("CREATE TABLE done (name TEXT, number INTEGER, PRIMARY KEY (name, number)) WITHOUT ROWID")
        if self.rows.exists():
            with self.rows.open("rb+") as lines:
                complete_bytes, size = 0, os.fstat(lines.fileno()).st_size
                for number, line in enumerate(lines, start=1):
                    fault = f"{self.rows}, line {number}: not a line of this job; take another --output"
                    if not line.endswith(b"\n"):
                        if not self._line_format.is_cut(line):
                            raise InputsError(fault)
                        break
                    row = decode_row(self._line_format, line, fault)
                    done.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (row.file_name, row.row_number_per_file))
                    complete_bytes += len(line)
                if complete_bytes < size:  # else it would only make the file look newer
                    lines.truncate(complete_bytes)
        return done

    def has(self, key: tuple[str, int]) -> bool:
        """Whether this photo (file name, row) had a row when the run began."""
        return self._done.execute("SELECT 1 FROM done WHERE name = ? AND number = ?", key).fetchone() is not None

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, all of them or, on a full disk, none."""
        self._file = self._file or self.rows.open("ab", buffering=0)
        append_atomically(self._file, "".join(self._line_format.encode(row) + "\n" for row in rows).encode())

    def close(self) -> None:
        """Finish the file (Parquet is written here) and release the lock."""
        if self._file:
            self._file.close()
        if self._format_name == PARQUET and self.rows.exists():
            _write_parquet(read_rows(self.rows), self.path)
        self._done.close()
        self._close_run_file()

    def _close_run_file(self) -> None:
        if not self._run_path.stat().st_size:
            self._run_path.unlink()  # of a run that never began
        self._run_file.close()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputsError(
            "Parquet is written by pyarrow: .venv/bin/pip install -e '.[cluster]', or take another --format"
        ) from error
    return pyarrow


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    pyarrow = _pyarrow()
    schema = pyarrow.schema([("row_number_per_file", "int64"), ("preds", "string"), ("file_name", "string")])
    with atomic_file(path) as draft, pyarrow.parquet.ParquetWriter(draft, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row._asdict() | {"preds": json.dumps(row.preds, ensure_ascii=False)})
            if len(batch) == PARQUET_ROWS_AT_ONCE:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))
