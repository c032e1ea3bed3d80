"""Ways of storing samples, by name. A new one is a file here and an import line below; the contract tests find it."""

from __future__ import annotations

from . import dct as _dct  # noqa: F401
from . import half_chroma as _half_chroma  # noqa: F401
from .base import PARAMETERISATIONS, Parameterisation, parse
from .likely import FEW, likely, suited
from .tiles import Factor, Tiles

__all__ = ["FEW", "PARAMETERISATIONS", "Factor", "Parameterisation", "Tiles", "likely", "parse", "suited"]
