"""Docstrings as Markdown: an extension of griffe.

``name: what it is`` at the start of a line becomes an item of a list.
"""

import re

import griffe

_ITEM = re.compile(r"[a-z_*][\w*., ()=/\[\]]{0,60}: +\S")


class Lists(griffe.Extension):
    """Turns every docstring as it is loaded."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """The docstring with its lists in Markdown's form; indented equations stay blocks of code."""
    lines, inside = [], False  # a list
    for line in text.splitlines():
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if not stripped:
            inside = False
        elif _ITEM.match(stripped) and (inside or indent == 0 or lines[-1].endswith(":")):
            if not inside and lines and lines[-1]:
                lines.append("")
            line, inside = f"- {stripped}", True
        elif inside and indent == 0:
            lines.append("")
            inside = False
        elif inside:
            line = f"  {stripped}"
        lines.append(line)
    return "\n".join(lines)
