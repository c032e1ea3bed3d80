"""`potstill export`: a set in another format."""

from __future__ import annotations

import argparse
from typing import Any

from . import options as shared


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "export", run, "write a set in another format")
    parser.add_argument(
        "set", type=shared.place, help="run folder, distilled.safetensors, or a .pt of another code base"
    )
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="huggingface, folder, wav, pt, pt-data or safetensors"
    )
    parser.add_argument("--out", type=shared.place, help="where to (default: beside the set)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    shared.add_told(parser)
    shared.add_data_places(parser)


def run(options: argparse.Namespace) -> None:
    from ..run.inputs import find_subject
    from ..run.score import stored_scores
    from ..run.store import RunStore
    from ..sets.export import export
    from ..sets.read import read_set

    told = shared.told_of(options)
    if options.dataset:
        places = {"data_dir": options.data_dir, "download": options.download}
        layers = shared.layers_of(options)
        synthetic = find_subject(options.set, layers, dataset=options.dataset, **told, **places).synthetic
    else:
        synthetic = read_set(options.set, **told)
    beside = options.set if options.set.is_dir() else options.set.parent
    destination = options.out or beside / f"export-{options.to}"
    scores = stored_scores(RunStore(options.set).scores)
    written = export(synthetic, destination, options.to, overwrite=options.overwrite, facts={"scores": scores})
    shared.show(options, {"written": str(written), "format": options.to}, str(written))
