"""Distilled sets from and to the forms that others read and write.

A further form to export to is a file that enters itself in `EXPORTS` (see `base`) and an import line below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files import expanded
from ..synthetic import SyntheticSet
from . import exact, folder, huggingface, wav  # noqa: F401  (they enter themselves in the registry)
from .base import EXPORTS, logger
from .eight_bit import quantise
from .pt import read_pt
from .publish import publish

__all__ = ["EXPORTS", "export", "quantise", "read_pt"]


def export(
    synthetic: SyntheticSet,
    destination: str | Path,
    to: str,
    *,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `synthetic` in the form `to`; what appears at `destination` is complete, or nothing does.

    Args:
        destination: the folder to make for huggingface, folder and wav, else the file; .pt or .safetensors is appended
            where it has no such suffix.
        to: huggingface, folder, pt, pt-data, safetensors, or wav for sound.
        overwrite: replace an earlier export in the same form.
        facts: what the set itself does not know, for the card: "scores" and "eight_bit_scores", see `card`.
    Returns:
        Where it was written.
    Raises:
        UsageError: an unknown form, an existing destination, or a set that the form cannot hold.
        DataError: values that are not finite, where the form holds pictures.
        MissingExtra: huggingface needs the extra `hub`.
        RunError: the destination cannot be written.
    """
    if not isinstance(synthetic, SyntheticSet):
        raise UsageError(f"cannot export {type(synthetic).__name__}: give a SyntheticSet (of a run: run.synthetic)")
    form = EXPORTS[to]
    if synthetic.extras and to != "safetensors":
        raise UsageError(f"{to} cannot hold the set's {', '.join(synthetic.extras)}: export it to safetensors")
    if synthetic.factor is None and to != "safetensors":
        stored = synthetic.way.describe()
        logger.warning("the form %s holds images: the decoded samples of %s are written", to, stored)
    destination = form.named(expanded(destination))
    publish(destination, form.content(synthetic, facts or {}), overwrite=overwrite)
    return destination
