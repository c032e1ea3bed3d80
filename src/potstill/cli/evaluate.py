"""`potstill evaluate`: scores of a set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options as shared

if TYPE_CHECKING:
    from ..evaluation import Scores
    from ..sets.synthetic import SyntheticSet


def add_parser(verbs: Any) -> None:
    text = "train networks on a set and score them on real test data, last epoch"
    parser = shared.add_verb(verbs, "evaluate", run, text)
    parser.add_argument("set", type=Path, help="run folder, distilled.safetensors, or a .pt of another code base")
    parser.add_argument("--dataset", metavar="NAME|PATH", help="the data set, where the set's file does not say")
    parser.add_argument("--factor", type=shared.factor, metavar="F|R,C", help="factor of a .pt set")
    parser.add_argument("--seed", type=int, help="of the evaluation networks")
    parser.add_argument("--out", type=Path, help="folder for the scores (default: the run folder)")
    parser.add_argument(
        "--eight-bit", action="store_true", help="also score the set rounded to 8 bits, as PNG keeps it"
    )
    shared.add_evaluation(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from ..run.inputs import find_subject
    from ..run.score import evaluate_set

    subject = find_subject(
        options.set,
        shared.layers_of(options),
        dataset=options.dataset,
        factor=tuple(options.factor) if options.factor else None,
        seed=options.seed,
        out=options.out,
        data_dir=options.data_dir,
        download=options.download,
    )
    reporter = shared.reporter_of(options)

    def score(subject: Any) -> Scores:
        return evaluate_set(subject.synthetic, subject.data, subject.recipe, subject.folder, reporter)

    scores = score(subject)
    result, text = _to_json(scores, subject.synthetic), str(scores)
    if options.eight_bit:
        rounded = score(subject.eight_bit())
        difference = rounded.mean - scores.mean
        result["eight_bit"] = {**_to_json(rounded, subject.synthetic), "difference": difference}
        text += f"\n8-bit: {rounded}; difference {100 * difference:+.2f}"
    shared.show(options, result, text)


def _to_json(scores: Scores, synthetic: SyntheticSet) -> dict[str, Any]:
    return {**scores.to_json(), "recipe_hash": synthetic.provenance.get("recipe_hash", "")}
