"""Hostile names stay plain text in every medium."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from potstill.escape import csv_cell, figure, latex, markdown, one_line
from potstill.report import Row, cost_figure, loss_curves, to_csv, to_latex, to_markdown
from potstill.report.cost import CostCurve, CostPoint
from potstill.sets.export.card import dataset_card
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import LabelledDataset

HOSTILE = "[money](javascript:alert(1)) <img src=x onerror=alert(1)> `a` *b*\n# heading | cell"


def row(dataset: str, **facts: object) -> Row:
    return replace(Row("dsdm", dataset, "f", 1, (1, 1)), **facts)  # type: ignore[arg-type]


def test_markdown_makes_no_link_tag_code_heading_or_column() -> None:
    text = markdown(HOSTILE)
    assert "\n" not in text and "<" not in text
    assert text.startswith(r"\[money\](javascript") and r"\`a\` \*b\* # heading \| cell" in text
    assert [markdown(t) for t in ("# x", "- x", "-0.5", "random_mix", "a & b")] == [
        r"\# x", r"\- x", "-0.5", "random_mix", "a &amp; b",
    ]  # fmt: skip


def test_tables_and_card_hold_a_hostile_name_as_text(toy_dataset: LabelledDataset) -> None:
    spec = replace(toy_dataset.spec, name=HOSTILE)
    images = initial_images(toy_dataset.train, spec, ipc=1)
    card = dataset_card(SyntheticSet(images, spec), {}, 0.0, "data/train.parquet").split("---\n", 2)[2]
    for text in (card, to_markdown([row(HOSTILE), row("other")])):
        assert "<img" not in text and "[money](" not in text and "\n# heading" not in text


@pytest.mark.parametrize("name", ['=HYPERLINK("http:evil")', "+1", "-1", "@x", "\t=x", "\r\n@x"])
def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(name: str) -> None:
    assert csv_cell(name) == f"'{name.strip()}"
    (record,) = csv.DictReader(io.StringIO(to_csv([row(name, gain=-0.5)]), newline=""))
    assert record["dataset"] == f"'{name.strip()}" and record["gain"] == "-0.5"


def test_dollars_in_labels_are_no_mathematics() -> None:
    assert figure(r"$\frac$") == r"\$\frac\$"
    assert r"$\frac$" in loss_curves([{"step": s, "loss": 1.0 / s, "terms": {r"$\frac$": 1.0 / s}} for s in (1, 2)])
    curve = CostCurve("m", "d", 1, "n", "p", 1, ("r",), (CostPoint(1, 1.0, 0.5, None, 1, 1),))
    assert r"$\frac$" in cost_figure([curve], [r"$\frac$"])


def test_the_terminal_shows_escape_codes_and_obeys_none() -> None:
    assert one_line("\x1b[2Jz\nsecond\x07 line é") == r"\x1b[2Jz second\x07 line é"


def test_a_table_in_latex_escapes_its_names_and_sets_its_signs() -> None:
    assert latex(r"50% of a_b & \x") == r"50\% of a\_b \& \textbackslash{}x"
    lines = to_latex([row("a_b", mean=0.5, std=0.01, nets_per_set=(3,))]).splitlines()
    assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
    assert lines[4] == r"\hline" and all(line.endswith(r"\\") for line in (lines[3], lines[5]))
    assert r"dsdm & 50.00 $\pm$ 1.00 (1 $\times$ 3) &" in lines[5]
    assert r"data set a\_b" in lines[1]
