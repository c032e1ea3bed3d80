"""Range checks that frozen sections of keys make in `__post_init__`, so that Python and recipes are told the same.

Each names the key by its place in the section; `recipe.resolve` puts the section's own name before it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from .errors import UsageError

#: More than any count, rate or size in use: a slip of the keyboard, which would fill the memory without a word.
MOST = 1_000_000_000


def whole(name: str, value: Any) -> int:
    """`value` as an int, whichever library's whole number it is.

    Raises:
        UsageError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name}={value!r}: need a whole number") from None


def one_of(section: Any, known: Iterable[str], *names: str) -> None:
    """Raises UsageError unless each of the named keys has a known value."""
    for name in names:
        if (value := getattr(section, name)) not in known:
            raise UsageError(f"{name}={value!r}: use one of {', '.join(known)}")


def at_least(section: Any, low: float, *names: str, most: float = MOST, of: str = "") -> None:
    """Raises UsageError unless the named numbers, those in tuples too, lie within `low..most`; None and words pass."""
    for name in names:
        value = getattr(section, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) or number is None or low <= number <= most:
                continue
            bound = f"at most {most:,}" if number > most else f"at least {low:,}{of and ' ' + of}"
            raise UsageError(f"{name}={number}: need {bound}")


def share(section: Any, *names: str) -> None:
    """Raises UsageError unless the named numbers lie within 0..1."""
    for name in names:
        if not 0 <= (value := getattr(section, name)) <= 1:
            raise UsageError(f"{name}={value:g}: need a share from 0 to 1")
