"""The command line: parse, call, print. One file per verb holds its options, its body and its words."""

from .main import main

__all__ = ["main"]
