"""A graph of the core IR as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from sparsec.compiler.ir import BatchDim, Graph, Node
from sparsec.errors import InputError, UnsupportedError
from sparsec.pruning.engine.ops import FORMS, tensor_of, torch_dtype

OnInput = Callable[[str, Tensor], Tensor]
"""``on_input(layer, x) -> x``: sees, and may replace, what a linear layer multiplies."""

Lengths = Sequence[int]


class TorchGraph(nn.Module):
    """A graph of the core IR that torch runs, and differentiates.

    Attributes:
        graph: what it computes.
        products: index of a node -> (name of the linear layer, position of the operand that it
            multiplies): the places where `on_input` is called.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, nn.Parameter] | None = None,
        products: Mapping[int, tuple[str, int]] | None = None,
    ) -> None:
        """
        Args:
            graph: any verified graph.
            weights: parameters by the names of the graph's inputs that they stand for; they are
                not copied, so that graphs of several lengths share them.  None: the graph's float
                constants of more than one element become parameters, under their own names.
            products: see the class.

        Raises:
            UnsupportedError: listing every node that torch has no form for, or whose gradient
                would be lost.
        """
        super().__init__()
        self.graph = graph
        self.products = dict(products or {})
        own = weights is None
        constants = graph.constants
        names = [n for n, a in constants.items() if own and a.dtype.kind == "f" and a.size > 1]
        check_forms(graph, names if own else list(weights or {}))
        made = {name: nn.Parameter(tensor_of(constants[name])) for name in names}
        self._names = tuple(made) if own else tuple(weights or {})
        self._weights = nn.ParameterList((weights or made).values() if self._names else [])
        self._constants = tuple(name for name in constants if name not in made)
        for i, name in enumerate(self._constants):
            self.register_buffer(f"constant_{i}", tensor_of(constants[name]), persistent=False)
        self.last_use = _last_uses(graph)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(zip(self._names, self._weights, strict=True))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what has to be given."""
        return tuple(name for name in self.graph.inputs if name not in self._names)

    def constants(self) -> dict[str, Tensor]:
        """What is neither given nor a parameter, by name."""
        return {n: self.get_buffer(f"constant_{i}") for i, n in enumerate(self._constants)}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        lengths: Lengths | None = None,
        weights: Mapping[str, Tensor] | None = None,
        on_input: OnInput | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name.

        Args:
            inputs: by name, in the graph's shapes and element types.
            lengths: how many tokens of each sequence are real; None: all.
            weights: tensors to use in place of parameters.
            on_input: see :data:`OnInput`.

        Raises:
            InputError: an input is missing or does not fit.
        """
        walk = self.start(inputs, lengths=lengths, weights=weights, on_input=on_input)
        walk.until(len(self.graph.nodes))
        return walk.outputs()

    def start(
        self,
        inputs: Mapping[str, Tensor],
        *,
        lengths: Lengths | None = None,
        weights: Mapping[str, Tensor] | None = None,
        on_input: OnInput | None = None,
    ) -> Walk:
        """The same, node by node."""
        # Not `or`: who walks on may fill an empty mapping meanwhile.
        return Walk(self, inputs, lengths, {} if weights is None else weights, on_input)


class Walk:
    """One run of a graph, as far as it has come: only what later nodes read is kept.

    Attributes:
        at: index of the next node.
        values: tensors by name.
    """

    def __init__(
        self,
        module: TorchGraph,
        inputs: Mapping[str, Tensor],
        lengths: Lengths | None,
        weights: Mapping[str, Tensor],
        on_input: OnInput | None,
    ) -> None:
        self.module = module
        self.at = 0
        self.on_input = on_input
        self.replaced = weights
        given = {name: _fitting(module.graph, inputs, name) for name in module.inputs}
        self.values: dict[str, Tensor] = {**module.constants(), **given}
        self._batch = _batch_of(module.graph, given)
        self._lengths = lengths

    def _value(self, name: str) -> Tensor:
        found = self.replaced.get(name)
        if found is not None:
            return found
        if name in self.values:
            return self.values[name]
        return self.module.weights[name]

    def until(self, stop: int) -> None:
        """Run the nodes up to, and without, an index."""
        graph, last_use = self.module.graph, self.module.last_use
        parameters = self.module.weights
        scope: dict[str, Tensor] = {**parameters, **self.replaced}
        for i in range(self.at, stop):
            node = graph.nodes[i]
            operands = [
                (scope[n] if n in scope else self.values[n]) if n else None for n in node.inputs
            ]
            if i in self.module.products and self.on_input is not None:
                layer, place = self.module.products[i]
                x = operands[place]
                operands[place] = self.on_input(layer, x) if x is not None else None
            results = run_form(node, operands, self._batch, self._lengths)
            for name, result in zip(node.outputs, results, strict=True):
                self.values[name] = result
            for name in (*node.inputs, *node.outputs):
                if last_use.get(name, -1) <= i and name not in graph.outputs:
                    self.values.pop(name, None)
        self.at = max(self.at, stop)

    def value(self, name: str) -> Tensor:
        """A value that a later node reads.

        Raises:
            KeyError: it is not there any more, or not yet.
        """
        return self._value(name)

    def outputs(self) -> dict[str, Tensor]:
        """The outputs by name, at the end."""
        graph = self.module.graph
        pairs = zip(graph.output_names, graph.outputs, strict=True)
        return {name: self._value(value) for name, value in pairs}


def run_form(
    node: Node,
    operands: Sequence[Tensor | None],
    batch: int = 1,
    lengths: Lengths | None = None,
) -> Sequence[Tensor]:
    """Results of a node, computed by its torch form.

    Raises:
        IndexError: an index is out of range.
    """
    attrs = {**node.attrs, "_batch": batch, "_lengths": lengths, "_run": _run_nested}
    return FORMS[node.op].compute(attrs, *operands)


def _run_nested(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A nested graph on tensors."""
    device = inputs[0].device
    values = {name: tensor_of(array).to(device) for name, array in graph.constants.items()}
    values |= dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        operands = [values[name] if name else None for name in node.inputs]
        results = run_form(node, operands, len(inputs[0]))
        values |= dict(zip(node.outputs, results, strict=True))
    return [values[name] for name in graph.outputs]


def _last_uses(graph: Graph) -> dict[str, int]:
    """Index of the last node that reads each value."""
    found: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        found |= dict.fromkeys(filter(None, node.inputs), i)
    return found


def _fitting(graph: Graph, inputs: Mapping[str, Tensor], name: str) -> Tensor:
    """An input that has been given.

    Raises:
        InputError: it is missing, or has another type or shape.
    """
    value = graph.values[name]
    if name not in inputs:
        raise InputError(f"the input {name} is missing; {graph.name} takes {value}")
    tensor = inputs[name]
    dtype = torch_dtype(value.dtype)
    right = len(value.shape) == tensor.ndim and all(
        isinstance(d, BatchDim) or d == extent
        for d, extent in zip(value.shape, tensor.shape, strict=False)
    )
    # Ids and masks may come as integers of any width.
    if not right or tensor.is_floating_point() != dtype.is_floating_point:
        raise InputError(f"{value} is given {tensor.dtype}{list(tensor.shape)}")
    return tensor.to(dtype)


def _batch_of(graph: Graph, inputs: Mapping[str, Tensor]) -> int:
    """The batch size that inputs have; 1 where none has a batch extent."""
    batch = 1
    for name, tensor in inputs.items():
        for dim, extent in zip(graph.values[name].shape, tensor.shape, strict=True):
            if isinstance(dim, BatchDim) and dim.const == 0:
                batch = extent // dim.coef
    return batch


def check_forms(graph: Graph, weights: Sequence[str]) -> None:
    """See that torch computes a graph, and that its outputs' gradients reach its weights.

    Args:
        weights: names of the values that gradients are wanted of.

    Raises:
        UnsupportedError: listing every node in the way, by its ONNX name.
    """
    needed = _reaching_outputs(graph)
    moved = set(weights)
    wrong: list[tuple[str, str, str]] = []
    for node in graph.nodes:
        name = node.source or node.outputs[0]
        form = FORMS.get(node.op)
        why = "torch has no form of it" if form is None else ""
        depends = [n for n in node.inputs if n in moved]
        floats = any(_is_float(graph, n) for n in node.outputs)
        if form is not None and depends and not needed.isdisjoint(node.outputs):
            lost = not form.gradient
            lost |= node.op == "cast" and not floats
            why = "it has no gradient" if lost else ""
        if why:
            wrong.append((name, node.op, why))
        if depends and floats:
            moved |= {n for n in node.outputs if _is_float(graph, n)}
    if wrong:
        listed = "\n".join(f"  {name} ({op}): {why}" for name, op, why in wrong)
        count = "1 node" if len(wrong) == 1 else f"{len(wrong)} nodes"
        raise UnsupportedError(f"{graph.name}: {count} cannot be trained through\n{listed}", wrong)


def _is_float(graph: Graph, name: str) -> bool:
    return graph.values[name].dtype.kind == "f"


def _reaching_outputs(graph: Graph) -> set[str]:
    """Values that a float output is computed from, through numbers and not through indices,
    conditions or shapes."""
    needed = {name for name in graph.outputs if _is_float(graph, name)}
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            skipped = 1 if node.op == "where" else 0
            needed |= {n for n in node.inputs[skipped:] if n and graph.values[n].dtype.kind != "b"}
    return needed
