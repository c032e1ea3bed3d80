"""Names of data sets, classes, folders and methods are anyone's text: one function for each place they are shown in."""

from __future__ import annotations

import re

from .errors import printable

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def one_line(text: str) -> str:
    """For the terminal: no line breaks, and control characters (escape codes) shown and not obeyed."""
    return printable(" ".join(text.split()))


def markdown(text: str) -> str:
    """Plain words in Markdown, in a sentence, a heading or a cell: no link, HTML, code, emphasis, heading or column."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    return re.sub(r"^([#>+=-])", r"\\\1", text) if re.match(r"[#>+=-](?!\d)", text) else text


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula; numbers are not texts."""
    text = one_line(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def figure(text: str) -> str:
    """A label that matplotlib does not take for mathematics."""
    return one_line(text).replace("$", r"\$")


def latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in one_line(text))
