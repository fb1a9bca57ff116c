"""A regular expression that finds any of many fixed texts in one pass, without trying them one by one."""

import re
from collections.abc import Iterable

_END = ""  #: a text ends here


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the texts at each place; nothing where there are none."""
    root: dict[str, dict] = {}  # type: ignore[type-arg]  # a tree of itself
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[_END] = {}
    return re.compile(_expression(root) if root else r"(?!)")


def _expression(node: dict[str, dict]) -> str:  # type: ignore[type-arg]
    """Texts share their beginnings, so that a mismatch is seen at the first character that differs."""
    branches = [re.escape(character) + _expression(child) for character, child in node.items() if character != _END]
    if not branches:
        return ""
    if _END in node:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
