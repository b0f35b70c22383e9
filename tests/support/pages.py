"""The pages of this repository, and their headings and code blocks."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "client/README.md")),
        *sorted((REPOSITORY / "docs").glob("*.md")),
    )
}
README = PAGES[REPOSITORY / "README.md"]
EVERYTHING = "\n".join(PAGES.values())


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def headings(text):
    """The anchors that GitHub makes of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
