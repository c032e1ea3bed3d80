"""What was done and how it was measured, in sentences made from the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import counted
from ..evaluation import PROTOCOLS, Scheduled
from ..learning.fit import Schedule
from ..methods import METHODS
from ..networks import is_own
from .read import RunRecord, marked
from .rows import RANDOM_METHODS, Row, better_random
from .tables import noun


def describe_title(records: Sequence[RunRecord]) -> str:
    """A title such as "dsdm on digits, 10 images per class"."""
    methods, datasets = _unique(marked(r.method, r.same_as) for r in records), _unique(r.dataset for r in records)
    ipcs = _unique(str(r.ipc) for r in records)
    who = methods[0] if len(methods) == 1 else f"{len(methods)} methods"
    return f"{who} on {_listed(datasets)}, {_listed(ipcs)} {_counted(_listed(ipcs), noun(records[0]))} per class"


def describe_results(rows: Sequence[Row]) -> list[str]:
    """One line for each learned row: its accuracy, and how it stands to the better Random row."""
    lines = []
    for row in rows:
        if row.mean is None or (row.method in RANDOM_METHODS and len(rows) > 1):
            continue
        split = "held-out" if row.holdout else "test"
        line = f"{row.name}{_place(row, rows)}: {100 * row.mean:.2f} % of the {split} {noun(row)} right"
        rival = better_random(row, rows)
        if rival is not None and rival.mean is not None and row.gain is not None:
            side = "above" if row.gain >= 0 else "below"
            line += (
                f", {abs(100 * row.gain):.2f} points {side} the better Random row "
                f"({rival.method}, {100 * rival.mean:.2f} %)"
            )
        if row.over_paper is not None:
            side = "above" if row.over_paper >= 0 else "below"
            line += f", {abs(100 * row.over_paper):.2f} points {side} the {row.paper:g} % of the paper"
        if row.share is not None:
            line += f", {100 * row.share:.1f} % of what the full data give"
        lines.append(f"{line}.")
    return lines


def describe_runs(group: Sequence[RunRecord]) -> str:
    """A sentence on runs that differ only in their seed: method, size of the set, steps, pool and seeds."""
    record = group[0]
    tiles = f" as {record.stored_as}"
    if record.factor:
        rows, columns = record.factor
        tiles = f", each a mosaic of {rows} x {columns} smaller ones" if (rows, columns) != (1, 1) else ""
    what = str(record.environment.get("method_about", "")).rstrip(".")
    stored = f"{record.ipc} stored {_counted(record.ipc, noun(record))}"
    text = f"{record.shown_label}{f' ({what})' if what else ''}: {stored} per class{tiles}"
    if record.numbers_stored:
        text += f", {record.numbers_stored:,} numbers in all"
    if record.steps_planned:
        text += f"; {_listed(_unique(f'{r.steps_planned:,}' for r in group))} steps"
        if record.planned:
            text += f", planned for {record.budget_minutes:g} minutes,"
        elif record.budget_minutes is not None:
            text += f", or as many as {record.budget_minutes:g} minutes allow,"
        pool = record.config.get("pool")
        if isinstance(pool, dict) and pool.get("members") and _draws_from_pool(record.method):
            text += f" against {_pool(pool)}"
    seeds = _unique(str(r.config.get("seed", "not given")) for r in group)
    return f"{text}; seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}."


def _pool(keys: dict[str, Any]) -> str:
    """The networks of a pool by its keys; those of a factory of one's own may have come trained."""
    name, members = str(keys.get("network", "not named")), keys["members"]
    if keys.get("pretrained", True):
        return f"{members} pre-trained {_counted(members, 'networks')} ({name})"
    own = is_own(name)
    return f"networks as {name} gives them" if own else f"{members} untrained {_counted(members, 'networks')} ({name})"


def _counted(count: Any, nouns: str) -> str:
    """`images`, or `image` where there is one."""
    return nouns.removesuffix("s") if str(count) == "1" else nouns


def _draws_from_pool(method: str) -> bool:
    """Whether the pool of the recipe was used; a stored run may be of a method that this version does not know."""
    return method in METHODS and METHODS[method].needs_pool


def describe_missing(record: RunRecord) -> list[str]:
    """What this run has not come to yet, plainly."""
    missing = [f"failed: {record.failure.rstrip('.')}"] if record.failure else []
    planned, done = record.steps_planned, record.steps_done
    if record.distilled is None:
        reached = f" (step {done:,} of {planned:,})" if planned and done else ""
        missing.append(f"not finished{reached}: there is no distilled set yet")
    if not record.scores:
        missing.append("not evaluated yet: there are no scores")
    if record.steps_planned and not record.metrics:
        missing.append("no metrics were logged, so there are no loss curves")
    return [f"{record.name}: {text}." for text in missing]


def describe_protocol(name: str, epochs: int) -> str:
    """How evaluation networks are trained under a protocol, with the number of epochs that was used."""
    protocol = PROTOCOLS.get(name)
    if not isinstance(protocol, Scheduled):
        known = "its schedule comes with the set" if protocol else "this version of potstill does not know the protocol"
        return f"Protocol {name}, {counted(epochs, 'epoch')}; {known}."
    schedule = protocol.schedule
    usual = "" if epochs == schedule.epochs else f" (the protocol's own number is {schedule.epochs:,})"
    parts = [
        f"{counted(epochs, 'epoch')}{usual}",
        f"batches of {schedule.batch}",
        _optimizer(schedule),
        _decay(schedule),
        _augmentation(schedule),
        f"CutMix with probability {schedule.cutmix:g}" if schedule.cutmix else "no CutMix",
    ]
    return f"Protocol {name}: {', '.join(parts)}."


def _optimizer(schedule: Schedule) -> str:
    if schedule.optimizer == "sgd":
        momentum = f", {'Nesterov ' if schedule.nesterov else ''}momentum {schedule.momentum:g}"
    else:
        momentum = ""
    name = {"sgd": "SGD", "adamw": "AdamW"}.get(schedule.optimizer, schedule.optimizer)
    return f"{name} at rate {schedule.learning_rate:g}{momentum}, weight decay {schedule.weight_decay:g}"


def _decay(schedule: Schedule) -> str:
    if schedule.decay == "steps":
        restart = " by a new optimiser" if schedule.decay_restarts else ""
        moments = _listed([f"{share:.0%}" for share in schedule.decay_at])
        return f"rate times {schedule.decay_factor:g} at {moments} of the epochs{restart}"
    return {"none": "constant rate", "one_cycle": "rate up, then down in one cycle"}[schedule.decay]


def _augmentation(schedule: Schedule) -> str:
    if schedule.augment in ("", "none"):
        return "no augmentation"
    how = ", one of them per batch" if schedule.augment_single else ""
    return f"augmentation {schedule.augment.replace('_', ', ')} (mirroring only where the label keeps){how}"


def _place(row: Row, rows: Sequence[Row]) -> str:
    """What tells this row from others of its name, in brackets."""
    rivals = [other for other in rows if other.name == row.name and other.mean is not None]
    facts = [
        (row.dataset, "dataset"),
        (f"IPC {row.ipc}", "ipc"),
        (f"factor {row.partition}", "factor"),
        (f"{row.stored_bits} bits a number", "stored_bits"),
        (row.network, "network"),
        (f"protocol {row.protocol}", "protocol"),
        (counted(row.epochs or 0, "epoch"), "epochs"),
    ]
    told = [str(text) for text, name in facts if len({getattr(other, name) for other in rivals}) > 1]
    return f" ({', '.join(told)})" if told else ""


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _listed(words: Sequence[str]) -> str:
    """As in "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
