"""Functions of tensors that a GPU replays as one graph: small steps cost their kernels, not their launches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: Graphs of one function at most; further shapes and arguments are computed without.
MOST_GRAPHS = 64


class Captured:
    """`function` captured once for each set of shapes and keyword arguments, and replayed from then on.

    What a call returns lies in the graph's own memory and holds until the next call: keep a clone of what is to stay.

    Args:
        function: of tensors, and mappings and tuples of them, by position, and of constants by keyword. It may neither
            look at values nor copy from or to the host.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, *given: Any, **constants: Any) -> Any:
        leaves, structure = pytree.tree_flatten(given)
        key = (tuple((leaf.shape, leaf.dtype) for leaf in leaves), tuple(sorted(constants.items())))
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                return self.function(*given, **constants)
            self._graphs[key] = _Graph(partial(self.function, **constants), leaves, structure)
        return self._graphs[key](leaves)


class _Graph:
    def __init__(self, function: Callable[..., Any], leaves: Sequence[Tensor], structure: pytree.TreeSpec):
        self._places = [leaf.clone() for leaf in leaves]
        self._alike = defaultdict[torch.dtype, list[int]](list)  # copied together, in one launch
        for i, leaf in enumerate(leaves):
            self._alike[leaf.dtype].append(i)
        given = pytree.tree_unflatten(self._places, structure)
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):  # compiling and choosing kernels cannot be captured
            for _ in range(2):
                function(*given)
        here.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = function(*given)

    def __call__(self, leaves: Sequence[Tensor]) -> Any:
        for indices in self._alike.values():
            torch._foreach_copy_([self._places[i] for i in indices], [leaves[i] for i in indices])
        self._graph.replay()
        return self._found
