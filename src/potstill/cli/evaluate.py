"""`potstill evaluate`: scores of a set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from . import options as shared

if TYPE_CHECKING:
    from ..evaluation import Scores
    from ..sets.synthetic import SyntheticSet


def add_parser(verbs: Any) -> None:
    text = "train networks on a set and score them on real test data, last epoch"
    parser = shared.add_verb(verbs, "evaluate", run, text)
    parser.add_argument(
        "set", type=shared.place, help="run folder, distilled.safetensors, or a .pt of another code base"
    )
    shared.add_told(parser)
    parser.add_argument("--seed", type=shared.whole, help="of the evaluation networks")
    parser.add_argument("--out", type=shared.place, help="folder for the scores (default: the run folder)")
    shared.add_evaluation(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from ..run.inputs import find_subject
    from ..run.score import evaluate_in_few_bits, evaluate_set

    subject = find_subject(
        options.set,
        shared.layers_of(options),
        dataset=options.dataset,
        **shared.told_of(options),
        seed=options.seed,
        out=options.out,
        data_dir=options.data_dir,
        download=options.download,
    )
    given = subject.data, subject.recipe, subject.folder, shared.reporter_of(options)
    scores = evaluate_set(subject.synthetic, *given)
    result, text = _to_json(scores, subject.synthetic), f"{scores}; {_size(subject.synthetic)}"
    if rounded := evaluate_in_few_bits(subject.synthetic, *given):
        synthetic, in_few_bits = rounded
        difference = in_few_bits.mean - scores.mean
        result["quantised"] = {**_to_json(in_few_bits, synthetic), "difference": difference}
        text += f"\n{synthetic.stored_bits} bits: {in_few_bits}; {_size(synthetic)}; difference {100 * difference:+.2f}"
    shared.show(options, result, text)


def _size(synthetic: SyntheticSet) -> str:
    return f"{synthetic.numbers_stored:,} numbers, {synthetic.bytes_stored:,} bytes"


def _to_json(scores: Scores, synthetic: SyntheticSet) -> dict[str, Any]:
    return {
        **scores.to_json(),
        "numbers_stored": synthetic.numbers_stored,
        "bytes_stored": synthetic.bytes_stored,
        "stored_bits": synthetic.stored_bits,
        "recipe_hash": synthetic.provenance.get("recipe_hash", ""),
    }
