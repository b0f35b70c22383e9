"""Report about an annotation file, the same for all commands: counts, what was left out, what was repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

ANNOTATIONS_HELP = "COCO JSON, AzureML annotations JSONL (*.jsonl), or the folder of an MLTable"
STRICT_HELP = "exit with status 2 if anything would be left out of the annotations"


class AnnotationsError(ValueError):
    """Invalid annotations; the message names the file, the place and what was expected."""


@dataclass(slots=True)
class Noted:
    """How often something occurred, and where first."""

    count: int
    first: str


@dataclass(slots=True)
class Report:
    """Filled while a file is read.

    Args:
        file: its name.
        photos, objects, crowds: numbers that are used.
        left_out: objects, rings or photos that are left out, by reason.
        repaired: repairs, by kind.
        noted: objects that are used as they are but may be meant differently, by kind.
        remarks: other things worth knowing.
    """

    file: str
    photos: int = 0
    objects: int = 0
    crowds: int = 0
    left_out: dict[str, Noted] = field(default_factory=dict)
    repaired: dict[str, Noted] = field(default_factory=dict)
    noted: dict[str, Noted] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, place: str) -> None:
        """Count something that is left out."""
        _note(self.left_out, reason, place)

    def repair(self, what: str, place: str) -> None:
        """Count a repair."""
        _note(self.repaired, what, place)

    def note(self, what: str, place: str) -> None:
        """Count something that is used as it is but may be meant differently."""
        _note(self.noted, what, place)

    def refuse_left_out(self) -> None:
        """Raise AnnotationsError if anything was left out (`--strict`)."""
        if self.left_out:
            raise AnnotationsError(f"{self.file}: {'; '.join(_lines_of(self.left_out, 'left out'))}; --strict allows none.")

    def _lines(self) -> list[str]:
        crowds = f", {self.crowds:,} crowds" if self.crowds else ""
        first = f"{self.file}: {self.photos:,} photos, {self.objects:,} objects{crowds}"
        counted = {"left out": self.left_out, "repaired": self.repaired, "check": self.noted}
        return [first, *(line for verb, notes in counted.items() for line in _lines_of(notes, verb)), *self.remarks]

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    def in_one_line(self) -> str:
        """For error messages."""
        return "; ".join(self._lines())

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {name: value for name, value in asdict(self).items() if name != "file"}


def _note(notes: dict[str, Noted], reason: str, place: str) -> None:
    notes.setdefault(reason, Noted(0, place)).count += 1


def _lines_of(notes: dict[str, Noted], verb: str) -> Sequence[str]:
    return [f"{verb}: {noted.count:,} {reason} (first: {noted.first})" for reason, noted in notes.items()]
