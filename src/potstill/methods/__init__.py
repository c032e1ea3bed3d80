"""Methods by name. A new one is a file here and an import line below; the contract tests find it."""

from __future__ import annotations

from . import cafe as _cafe  # noqa: F401
from . import dance as _dance  # noqa: F401
from . import dc as _dc  # noqa: F401
from . import dd as _dd  # noqa: F401
from . import dm as _dm  # noqa: F401
from . import dsdm as _dsdm  # noqa: F401
from . import dsdm_plus as _dsdm_plus  # noqa: F401
from . import herding as _herding  # noqa: F401
from . import idc as _idc  # noqa: F401
from . import idm as _idm  # noqa: F401
from . import kcenter as _kcenter  # noqa: F401
from . import m3d as _m3d  # noqa: F401
from . import ncfm as _ncfm  # noqa: F401
from . import random as _random  # noqa: F401
from . import tgdd as _tgdd  # noqa: F401
from .base import METHODS, Method, run_method
from .feature_store import FeatureStore
from .problem import Init, Problem
from .state import Metrics, State

__all__ = ["METHODS", "FeatureStore", "Init", "Method", "Metrics", "Problem", "State", "run_method"]
