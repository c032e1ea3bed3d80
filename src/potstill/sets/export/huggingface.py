"""A folder for the Hugging Face hub: pictures in a parquet file, a card, and the exact set beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from ...errors import MissingExtra
from ..synthetic import SyntheticSet
from .base import EXPORTS, Form
from .card import dataset_card
from .eight_bit import png_bytes, sample_levels
from .names import distinct


def to_huggingface(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """What `datasets.load_dataset(folder)` reads as columns `image` and `label`: the decoded samples, class by class.

    Raises:
        MissingExtra: pyarrow is not installed.
        UsageError: a value range that is not finite, or neither 1 nor 3 channels.
        DataError: values that are not finite.
    """
    levels, clipped = sample_levels(synthetic)
    pictures = [png_bytes(sample) for sample in levels]
    table = _parquet(pictures, synthetic.decoded().labels.tolist(), synthetic.spec.classes)
    # `datasets` tells folders apart by the end of their path and by the card: the file has a name of its own.
    train_file = f"data/train-00000-of-00001-{blake2b(table, digest_size=8).hexdigest()}.parquet"
    return {
        train_file: table,
        "README.md": dataset_card(synthetic, facts, clipped, train_file).encode(),
        "distilled.safetensors": synthetic.to_bytes(),
    }


EXPORTS.register("huggingface")(Form(to_huggingface))


def _parquet(pictures: list[bytes], labels: list[int], classes: tuple[str, ...]) -> bytes:
    try:
        import pyarrow as pa  # optional
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("export to huggingface", "hub") from None
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(distinct(classes))}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        # Where `datasets` looks for what its own columns mean.
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = {"image": [{"bytes": picture, "path": None} for picture in pictures], "label": labels}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, schema=schema), sink)
    return sink.getvalue().to_pybytes()
