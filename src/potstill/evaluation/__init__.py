"""The one evaluator. A set is worth what networks trained on it score on real test data, at the LAST epoch.

Protocols are named and stored with every row, because the recipe is worth as much as the method: sets are compared
under one protocol only. Nothing here knows how a set was made, and no method ever sees the test split.
"""

from __future__ import annotations

from ..scores import Score, Scores
from .evaluate import MOST_NETS, evaluate_once, evaluation_seeds, matching_test
from .protocols import PROTOCOLS, Protocol, Scheduled, TrainingSet, find_protocol, samples_of

__all__ = [
    "MOST_NETS",
    "PROTOCOLS",
    "Protocol",
    "Scheduled",
    "Score",
    "Scores",
    "TrainingSet",
    "evaluate_once",
    "evaluation_seeds",
    "find_protocol",
    "matching_test",
    "samples_of",
]
