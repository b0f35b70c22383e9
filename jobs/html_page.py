"""Builds one self-contained HTML page: tables, and pictures as data URLs. All texts are escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

JPEG_QUALITY = 85
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td + td { font-variant-numeric: tabular-nums; } pre { background: #f5f5f5; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; } figcaption { font-size: 13px; overflow-wrap: anywhere; }
.pictures img { width: 100%; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; the parts are HTML, from the functions below."""
    head = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    return "\n".join([head, "<body>", f"<h1>{escape(title)}</h1>", *parts, "</body></html>", ""])


def heading(text: str) -> str:
    """A heading within the page."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def text_block(text: str) -> str:
    """Lines as they are."""
    return f"<pre>{escape(text)}</pre>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; no heads, no first row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return "\n".join(["<table>", *(f"<tr>{cells}</tr>" for cells in (head, *body) if cells), "</table>"])


def picture(image: Image.Image, caption: str) -> str:
    """A figure of an image, as JPEG."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return picture_file(file.getvalue(), "image/jpeg", caption)


def picture_file(data: bytes, media_type: str, caption: str) -> str:
    """A figure of an encoded image."""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return f"<figure><img src='{source}' alt='{escape(caption, quote=True)}'><figcaption>{escape(caption)}</figcaption></figure>"


def gallery(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return "\n".join(["<div class='pictures'>", *figures, "</div>"])
