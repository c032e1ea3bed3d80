"""Networks of the user's own: a factory by its place, and any module with a linear layer at its end as a backbone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UsageError, refuse_out_of_memory
from .base import Backbone, Maps, line_of
from .frozen import Frozen, FrozenNetwork


class Wrapped(Backbone):
    """A module that ends in a linear layer; its feature is what that layer is given.

    Args:
        body: the module with its last linear layer taken out: images `(B, C, H, W)` to features `(B, D)`.
        classifier: that layer.
    """

    def __init__(self, body: nn.Module, classifier: nn.Linear):
        super().__init__()
        self.body, self.classifier = body, classifier
        self.feature_width = classifier.in_features
        self.couples_batch = any(isinstance(module, _BatchNorm) for module in body.modules())

    def maps(self, x: Tensor) -> list[Maps]:
        raise UsageError("a network of your own has no maps of blocks that could be matched; use one of ours")

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)


def as_backbone(module: object, name: str, shape: tuple[int, int, int], num_classes: int) -> Backbone:
    """`module`, wrapped where it is no backbone. What it is given on trial is a batch of two black images.

    Raises:
        UsageError: no module, one that fails on such images, or one that does not end in a linear layer.
    """
    if isinstance(module, Backbone):
        return module
    if isinstance(module, Frozen):
        return FrozenNetwork(module, name, shape, num_classes)
    if not isinstance(module, nn.Module):
        raise UsageError(f"network {name!r} gave a {type(module).__name__}: need a torch.nn.Module")
    layers = _linear_layers_in_order(module, name, shape)
    logits, (last, made) = layers.pop("", None), layers.popitem() if layers else ("", None)
    if logits is None or made is None or logits.data_ptr() != made.data_ptr() or logits.shape != made.shape:
        raise UsageError(f"network {name!r}: must end in a Linear layer, whose input is the feature that is matched")
    if tuple(logits.shape) != (2, num_classes):
        raise UsageError(f"network {name!r} gives {tuple(logits.shape)} for 2 images: need (2, {num_classes})")
    classifier = module.get_submodule(last)
    assert isinstance(classifier, nn.Linear)
    module.set_submodule(last, nn.Identity())
    return Wrapped(module, classifier)


def _linear_layers_in_order(module: nn.Module, name: str, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Outputs of the linear layers as they ran, by name, and of the whole module by "" (if it is a tensor)."""
    found: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[..., None]:
        return lambda _module, _given, made: found.update({place: made})

    hooks = [part.register_forward_hook(keep(place)) for place, part in module.named_modules() if _is_linear(part)]
    was_training = module.training
    try:
        with torch.no_grad():
            made = module.eval()(torch.zeros(2, *shape))
    except Exception as error:  # whatever the user's code raises
        refuse_out_of_memory(error, f"network {name!r}")
        raise UsageError(f"network {name!r} fails on images {shape}: {line_of(error)}") from error
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return {**found, "": made} if isinstance(made, Tensor) else found


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


def find_factory(name: str) -> Callable[[tuple[int, int, int], int], object]:
    """The function that `package.module:factory` or `path/to/file.py:factory` names.

    Raises:
        UsageError: nothing there, or what is there cannot be imported; one line.
    """
    place, _, factory = name.rpartition(":")
    module = _import_file(Path(place), name) if place.endswith(".py") else _import_module(place, name)
    found = getattr(module, factory, None)
    if not callable(found):
        raise UsageError(
            f"network {name!r}: {place} has no function {factory!r}; need one of (C, H, W) and the number of classes"
        )

    def build(shape: tuple[int, int, int], num_classes: int) -> object:
        try:
            return found(shape, num_classes)
        except Exception as error:  # whatever the user's code raises
            refuse_out_of_memory(error, f"network {name!r}")
            raise UsageError(f"network {name!r} cannot be built for images {shape}: {line_of(error)}") from error

    return build


def source_of(name: str) -> Path | None:
    """The file that defines the factory: its content decides what the network is."""
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    spec = importlib.util.find_spec(place)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _import_module(place: str, name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it, and the console script has not
    try:
        return importlib.import_module(place)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"network {name!r}: cannot import {place}: {line_of(error)}") from error


def _import_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"network {name!r}: there is no file {path}")
    known = f"potstill_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickle look modules up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"network {name!r}: cannot import {path}: {line_of(error)}") from error
    return module
