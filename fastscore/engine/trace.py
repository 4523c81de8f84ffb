"""From a module and the arguments of a call to a graph of torch's operators, simplified."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

aten: Any = torch.ops.aten
native: Any = torch.ops.fastscore


class UntraceableError(Exception):
    """The network does something that no graph of fixed shapes can hold, or that the engine does not know."""


@dataclass
class Traced:
    """What a call computes.

    Attributes:
        graph: of torch's operators, in single assignment.
        inputs: the placeholders of the arguments, in the order of the flattened call; None where one is no tensor.
        tensors: placeholder -> what gets the parameter, buffer or constant that it stands for.
        outputs: the nodes of the flattened result.
        out_spec: how the result is put together.
    """

    graph: fx.Graph
    inputs: list[fx.Node | None]
    tensors: dict[fx.Node, Callable[[], Tensor]]
    outputs: list[fx.Node]
    out_spec: pytree.TreeSpec


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Trace `model` by `torch.export`. Raises UntraceableError."""
    try:
        with torch.no_grad():
            program = torch.export.export(model, args, kwargs, strict=False)
            if any(map(_writes, program.graph_module.graph.nodes)):
                program = program.run_decompositions({})  # takes as long again, and leaves nothing that writes
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UntraceableError(f"torch.export: {lines[0] if lines else type(error).__name__}") from error
    graph = program.graph_module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs: list[fx.Node | None] = []
    tensors: dict[fx.Node, Callable[[], Tensor]] = {}
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node if isinstance(node.meta.get("val"), Tensor) else None)
        else:
            assert spec.target is not None
            tensors[node] = _getter(model, spec.target, spec.kind, program.constants)
    kinds = {spec.kind for spec in program.graph_signature.output_specs}
    if kinds != {OutputKind.USER_OUTPUT}:
        raise UntraceableError("its forward() changes buffers or arguments")
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    _simplify(graph)
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    if not all(isinstance(node, fx.Node) for node in results):
        raise UntraceableError("it does not return tensors alone")
    return Traced(graph, inputs, tensors, list(results), out_spec)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _getter(model: nn.Module, target: str, kind: InputKind, constants: dict[str, Any]) -> Callable[[], Tensor]:
    path, _, name = target.rpartition(".")
    if kind is InputKind.PARAMETER or (kind is InputKind.BUFFER and target not in constants):
        owner = model.get_submodule(path)
        held: dict[str, Any] = owner._parameters if kind is InputKind.PARAMETER else owner._buffers
        return lambda: held[name]  # by name at every call: a parameter may be exchanged
    if kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        return lambda: constants[target]
    raise UntraceableError(f"{target} is no tensor")


def shape_of(node: Any) -> tuple[int, ...]:
    """Of the tensor that a node gives."""
    return tuple(int(n) for n in node.meta["val"].shape)


def is_norm(node: fx.Node) -> bool:
    """Whether a node is GroupNorm, with what `fastscore::group_norm_silu_fwd` does besides."""
    if node.target is operator.getitem and node.args[1] == 0:
        inner = node.args[0]
        return isinstance(inner, fx.Node) and inner.target is native.group_norm_silu_fwd.default
    return node.target is aten.group_norm.default


def _simplify(graph: fx.Graph) -> None:
    """Leave out what changes nothing, write embeddings in front of a norm as sums, join what is computed twice."""
    for node in list(graph.nodes):
        if node._erased:  # together with one before it
            continue
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
            continue
        same = _unchanged(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.target is native.group_norm_silu_fwd.default and node.args[3] is not None:
            _sum_in_front(graph, node)
        elif node.target is aten.matmul.default and len(shape_of(node.args[1])) == 2:
            _linear(graph, node)
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or draws(node):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The argument that a node gives back as it is, in a graph in which nothing is written to twice."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    x, target = node.args[0], node.target
    if target in (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default):
        return x
    if target is aten.dropout.default and not (node.args[2] and node.args[1]):
        return x
    val, source = node.meta.get("val"), x.meta.get("val")
    if not isinstance(val, Tensor) or not isinstance(source, Tensor):
        return None
    if val.dtype != source.dtype or val.shape != source.shape:
        return None
    if target in (aten.to.dtype, aten._to_copy.default, aten.view.default, aten.reshape.default):
        return x
    if target in (aten.div.Tensor, aten.mul.Tensor) and isinstance(node.args[1], int | float) and node.args[1] == 1:
        return x
    return None


def _sum_in_front(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, add, *rest = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(add, fx.Node)
    val = x.meta["val"]
    shape = [*add.meta["val"].shape, *[1] * (val.dim() - 2)]
    with graph.inserting_before(node):
        rows = graph.call_function(aten.view.default, (add, shape))
        rows.meta["val"] = torch.empty(shape, dtype=add.meta["val"].dtype, device="meta")
        total = graph.call_function(aten.add.Tensor, (x, rows))
        total.meta["val"] = torch.empty(val.shape, dtype=val.dtype, device="meta")
    node.args = (total, weight, bias, None, *rest)


def _linear(graph: fx.Graph, node: fx.Node) -> None:
    """Write a product with a matrix, and the sum with a row that follows it, as a linear layer."""
    x, matrix = node.args
    assert isinstance(matrix, fx.Node)
    if matrix.op != "placeholder":
        return
    last, bias = node, None
    (user, *others) = node.users
    if not others and user.target is aten.add.Tensor and user.args[0] is node and not user.kwargs:
        row = user.args[1]
        if isinstance(row, fx.Node) and row.op == "placeholder" and shape_of(row) == shape_of(node)[-1:]:
            last, bias = user, row
    with graph.inserting_before(last):
        weight = graph.call_function(aten.t.default, (matrix,))
        weight.meta["val"] = torch.empty(shape_of(matrix)[::-1], dtype=matrix.meta["val"].dtype, device="meta")
        layer = graph.call_function(aten.linear.default, (x, weight, bias))
    layer.meta["val"] = last.meta["val"]
    last.replace_all_uses_with(layer)
    graph.erase_node(last)
    if last is not node:
        graph.erase_node(node)


def draws(node: fx.Node) -> bool:
    """Whether an operator may draw random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    return (type(value), value)  # 1, 1.0 and True are different arguments
