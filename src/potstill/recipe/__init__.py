"""Recipes: every number of a run, resolved from layers, checked once, saved and hashed.

Layers, later over earlier: the dataclass defaults, the chosen `fidelity`'s keys, a recipe file, single keys
("method.steps"). A recipe file may carry a `methods` section with keys per method name; those of the method in use
become its `method` section. Types are checked by jsonargparse against the dataclasses below and the method's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..errors import UsageError
from ..evaluation import evaluation_seeds, find_protocol
from ..learning.fit import Schedule
from ..learning.pool import SCHEDULES
from ..machine.runtime import Runtime
from ..methods import METHODS, Init, Method
from ..networks import check_network
from ..sets.synthetic import check_factor

Layer = Mapping[str, Any]

#: Names of key groups; a method without any has no departures to choose from and takes each.
FIDELITIES = ("paper", "code", "potstill")


@dataclass(frozen=True)
class DataConfig:
    """Which data, see `data.load_dataset`; where they lie is no part of a recipe."""

    name: str = "digits"
    mirror: bool | None = None
    normalisation: str = "measured"
    holdout: float = 0.2
    size: int | None = None


@dataclass(frozen=True)
class PoolConfig:
    """The pool of networks, see `pool.pretrain`; `epochs` replaces the schedule's own number."""

    network: str = "convnet"
    members: int = 3
    schedule: str = "fast"
    epochs: int | None = None
    snapshots: tuple[int | float, ...] = ()
    pretrained: bool = True
    seed: int = 0

    def training(self) -> Schedule:
        """The schedule of one member.

        Raises:
            UsageError: an unknown schedule, epochs below 1, a snapshot outside them.
        """
        if self.schedule not in SCHEDULES:
            raise UsageError(f"pool.schedule={self.schedule!r}: use one of {', '.join(sorted(SCHEDULES))}")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"pool.epochs={self.epochs}: need at least 1")
        schedule = SCHEDULES[self.schedule]
        schedule = schedule if self.epochs is None else replace(schedule, epochs=self.epochs)
        if any(not 1 <= epoch <= schedule.epochs for epoch in self.snapshots):
            raise UsageError(f"pool.snapshots={list(self.snapshots)}: must lie in 1..{schedule.epochs} (pool epochs)")
        return schedule

    @property
    def networks(self) -> int:
        """Members times the epochs that are kept; untrained ones have none to keep."""
        return self.members * (len({*self.snapshots, self.training().epochs}) if self.pretrained else 1)


@dataclass(frozen=True)
class RuntimeConfig:
    """Choices of `runtime.Runtime.resolve`; "auto" is settled for the machine and the job."""

    device: str = "auto"
    precision: str = "auto"
    threads: int | str = "auto"
    compile: bool | str = "auto"
    chunk: int | str = "auto"

    def resolve(self, passes: int, side: int) -> Runtime:
        return Runtime.resolve(**asdict(self), passes=passes, side=side)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the set is scored, see `run.scoring`.

    Attributes:
        epochs: replaces the protocol's own number.
        at_once: networks trained at the same time, each in a process of its own with a share of the threads; "auto" for
            as many as a CPU has threads, where the job is long enough, and one after another on other devices.
    """

    network: str = "convnet"
    protocol: str = "dsdm"
    epochs: int | None = None
    nets: int = 3
    seed: int = 0
    at_once: int | str = "auto"


@dataclass(frozen=True)
class SavingConfig:
    """What a run leaves behind besides its set.

    Attributes:
        minutes: between snapshots; the newest is kept. By time, for a state can be large and a step short.
        every: also after every so many steps.
        keep: steps whose sets are kept for good.
        features: keep a bank's feature batches in the cache folder, for other IPC values, methods and resumed runs.
    """

    minutes: float = 5.0
    every: int | None = None
    keep: tuple[int, ...] = ()
    features: bool = False


@dataclass(frozen=True)
class BudgetConfig:
    """What distilling may take: minutes of its own, over all resumes, without the pool; None for all steps.

    A decay planned over all steps is cut where the budget ends, not shortened.
    """

    minutes: float | None = None

    @property
    def seconds(self) -> float:
        return math.inf if self.minutes is None else 60 * self.minutes


@dataclass(frozen=True)
class Recipe:
    """A resolved run. `method` is the method's own frozen config; `name` and `fidelity` say how it was found."""

    method_name: str
    method: Any
    ipc: int = 10
    factor: tuple[int, int] = (2, 2)
    seed: int = 0
    fidelity: str = "potstill"
    data: DataConfig = field(default_factory=DataConfig)
    init: Init = field(default_factory=Init)
    pool: PoolConfig = field(default_factory=PoolConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def to_dict(self) -> dict[str, Any]:
        """The nested dictionary that `resolve` reads back to an equal recipe."""
        record = _plain(asdict(self))
        record["method"] = {"name": record.pop("method_name"), **record["method"]}
        return record

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def hash(self) -> str:
        """Address of everything that determines the synthetic set (not of how it is scored or snapshots are kept).

        Where a budget ends depends on the machine: it cuts the sequence of sets that this addresses, and the set says
        at which step.
        """
        record = self.to_dict()
        del record["evaluation"], record["saving"], record["budget"]
        return blake2b(yaml.safe_dump(record).encode(), digest_size=6).hexdigest()

    def build_method(self) -> Method[Any]:
        return METHODS[self.method_name](self.method)


def resolve(*layers: Layer) -> Recipe:
    """Merge layers, check them and build the recipe.

    Args:
        layers: nested dictionaries, or flat ones with dotted keys; later ones win.
    Raises:
        UsageError: an unknown key, a value of the wrong type or outside its range; the message names the key.
    """
    given = merge(*layers)
    per_method = _section(given.pop("methods", {}), "methods")
    for name in per_method:
        _ = METHODS[name]
    method = _section(given.pop("method", {}), "method")
    name = _name(method.pop("name", "dsdm"), "method.name")
    cls = METHODS[name]
    fidelity = _name(given.pop("fidelity", "potstill"), "fidelity")
    preset = merge(_preset(cls, name, fidelity))
    method = merge(preset.pop("method", {}), _section(per_method.get(name, {}), f"methods.{name}"), method)
    _refuse_unknown(method, [f.name for f in fields(cls.Config)], "method.", f" of method {name!r}")
    checked = _check(cls.Config, merge(preset, given), method)
    recipe = Recipe(method_name=name, fidelity=fidelity, **checked)
    _check_ranges(recipe)
    return recipe


def read_recipe(source: str | Path) -> dict[str, Any]:
    """The layer in a recipe file: a path, or the name of a shipped recipe such as "dsdm/cifar10_ipc10".

    Raises:
        UsageError: no such file or recipe (the shipped ones are listed), or not YAML.
    """
    path = Path(source)
    if path.is_file():
        text = path.read_text()
    else:
        shipped = _shipped()
        if str(source) not in shipped:
            raise UsageError(f"no recipe {str(source)!r}: give a file, or one of {', '.join(sorted(shipped))}")
        text = shipped[str(source)].read_text()
    try:
        layer = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(layer, dict):
        raise UsageError(f"{source}: a recipe is a mapping of keys, found {type(layer).__name__}")
    return layer


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(_shipped())


def merge(*layers: Layer) -> dict[str, Any]:
    """One nested dictionary; dotted keys open sections, later layers win key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            _put(merged, str(key).split("."), value)
    return merged


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """Flat layer from command-line words: `--method.steps 2000` or `--method.steps=2000`; values are YAML.

    Raises:
        UsageError: a word that is no key, or a key without a value.
    """
    layer: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UsageError(f"unexpected argument {word!r}: recipe keys look like --method.steps 2000")
        key, has_value, value = word[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key}: no value given; recipe keys look like --method.steps 2000")
            value = rest.pop(0)
        try:
            layer[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            layer[key.replace("-", "_")] = value
    return layer


def _put(target: dict[str, Any], path: list[str], value: Any) -> None:
    key, *deeper = path
    if deeper:
        section = target.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(f"recipe key {'.'.join(path)!r}: {key!r} has a single value, not a section")
        _put(section, deeper, value)
    elif isinstance(value, Mapping):
        section = target.setdefault(key, {})
        if not isinstance(section, dict):
            section = target[key] = {}
        for inner, inner_value in value.items():
            _put(section, str(inner).split("."), inner_value)
    else:
        target[key] = value


def _preset(cls: type[Method[Any]], name: str, fidelity: str) -> Layer:
    if fidelity not in FIDELITIES:
        raise UsageError(f"fidelity={fidelity!r}: use one of {', '.join(FIDELITIES)}")
    if not cls.fidelity:
        return {}
    if fidelity not in cls.fidelity:
        raise UsageError(f"fidelity={fidelity!r} of method {name!r}: use one of {', '.join(cls.fidelity)}")
    return cls.fidelity[fidelity]


def _check(config: type, sections: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """Checked keyword arguments of `Recipe`, by jsonargparse from the dataclasses' types."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, prog="recipe")
    known = {f.name: f for f in fields(Recipe) if f.name not in ("method_name", "fidelity", "method")}
    _refuse_unknown(sections, [*known, "method", "methods", "fidelity"], "")
    parts: dict[str, type] = {"method": config}
    for name, entry in known.items():
        default = getattr(Recipe, name, None)
        made = entry.default_factory() if callable(entry.default_factory) else default  # type: ignore[misc]
        if is_dataclass(made):
            parts[name] = type(made)
        else:
            kind = {"ipc": int, "seed": int, "factor": tuple[int, int]}[name]
            _refuse_empty(sections, name, kind, "")
            parser.add_argument(f"--{name}", type=kind, default=made)
    for name, part in parts.items():
        given = method if name == "method" else _section(sections.get(name, {}), name)
        _refuse_unknown(given, [f.name for f in fields(part)], f"{name}.")
        for entry in fields(part):
            kind = _type_of(part, entry.name)
            _refuse_empty(given, entry.name, kind, f"{name}.")
            parser.add_argument(f"--{name}.{entry.name}", type=kind, default=entry.default)
    given = {**sections, "method": method}
    try:
        parsed = parser.parse_object({k: v for k, v in given.items() if v != {}}).as_dict()
    except Exception as error:
        raise UsageError(_one_line(error)) from error
    values = {name: part(**_tuples(parsed.get(name) or {})) for name, part in parts.items()}
    return {**_tuples(parsed), **values}


def _type_of(part: type, name: str) -> Any:
    return get_type_hints(part)[name]


def _refuse_unknown(given: Layer, known: list[str], prefix: str, owner: str = "") -> None:
    for key in given:
        if key not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UsageError(f"unknown recipe key {prefix + str(key)!r}{owner}: known are {listed}")


def _refuse_empty(given: Layer, key: str, kind: Any, prefix: str) -> None:
    """jsonargparse takes None for any type."""
    if given.get(key, ...) is None and type(None) not in get_args(kind):
        raise UsageError(f"recipe key {prefix + key!r}: no value given, expected {getattr(kind, '__name__', kind)}")


def _check_ranges(recipe: Recipe) -> None:
    if recipe.ipc < 1:
        raise UsageError(f"ipc={recipe.ipc}: need at least 1 image per class")
    if not recipe.saving.minutes > 0:
        raise UsageError(f"saving.minutes={recipe.saving.minutes:g}: need a number of minutes above 0")
    if recipe.saving.every is not None and recipe.saving.every < 1:
        raise UsageError(f"saving.every={recipe.saving.every}: need at least 1 step")
    if min(recipe.saving.keep, default=0) < 0:
        raise UsageError(f"saving.keep={min(recipe.saving.keep)}: steps are counted from 0")
    if recipe.budget.minutes is not None and not 0 < recipe.budget.minutes < math.inf:
        raise UsageError(f"budget.minutes={recipe.budget.minutes:g}: need a number of minutes above 0")
    if recipe.pool.members < 1:
        raise UsageError(f"pool.members={recipe.pool.members}: need at least 1 network")
    for name, value in (("threads", recipe.runtime.threads), ("chunk", recipe.runtime.chunk)):
        if value != "auto" and not str(value).lstrip("-").isdigit():
            raise UsageError(f"runtime.{name}={value!r}: use auto or a whole number")
    at_once = recipe.evaluation.at_once
    if at_once != "auto" and (not str(at_once).isdigit() or int(at_once) < 1):
        raise UsageError(f"evaluation.at_once={at_once!r}: use auto or at least 1 network")
    for network in (recipe.pool.network, recipe.evaluation.network):
        check_network(network)
    check_factor(recipe.factor)
    recipe.pool.training()
    find_protocol(recipe.evaluation.protocol, recipe.evaluation.epochs)
    evaluation_seeds(recipe.evaluation.seed, recipe.evaluation.network, recipe.evaluation.nets)


def _section(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"recipe key {name!r}: expected a section of keys, found {value!r}")
    return dict(value)


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"recipe key {key!r}: expected a name, found {value!r}")
    return value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML stays plain."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).replace("Parser key", "recipe key").split())
    return text[:400]


def _shipped() -> dict[str, Any]:
    root = Path(str(resources.files("potstill") / "recipes"))
    return {str(p.relative_to(root).with_suffix("")): p for p in root.rglob("*.yaml")}
