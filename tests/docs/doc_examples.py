"""Finds the examples in a page of docs/: fenced `bash` and `python` blocks are run, other fences are only shown.

A `json` block right after a `bash` block is what the documentation says the answer looks like.
"""

import re
from dataclasses import dataclass
from pathlib import Path

#: What the pages are written for; a test puts in what its server has.
DOCUMENTED_URL = "http://127.0.0.1:8000"
DOCUMENTED_MODEL = "demo"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """One block to run. `line` is where it stands in `page`; `answer` the JSON that the page shows for it, if any."""

    page: str
    line: int
    language: str
    code: str
    answer: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def code_for(self, url: str, model: str) -> str:
        """The code with another server and model put in."""
        code = self.code.replace(DOCUMENTED_URL, url)
        return code.replace(f'"{DOCUMENTED_MODEL}"', f'"{model}"')


def find_examples(page: Path) -> list[Example]:
    """All blocks of a page that are to be run."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    examples = []
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] not in ("bash", "python"):
            continue
        adjacent = following is not None and not text[fence.end() : following.start()].strip()
        answer = following[2] if following is not None and following[1] == "json" and adjacent else None
        line = text.count("\n", 0, fence.start()) + 1
        examples.append(Example(page.name, line, fence[1], fence[2], answer))
    return examples
