"""Programs in ONNX, for onnxruntime: a node or a few for each operation of the traced program.

jax2onnx is not used: it takes strided transposed convolutions for plain ones, and holds orbax-checkpoint back. Sizes
that are symbols, such as the number of examples, are computed where the program runs, from the shape of its input.
"""

import importlib
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from flaxae.errors import ConfigError, missing
from flaxae.exporting.tracing import Program

OPSET = 18
USE = '''"""Run an exported program. It needs onnxruntime and NumPy: python use.py reconstruct input.npy output.npz"""

import pathlib
import sys

import numpy as np
import onnxruntime

arguments = iter(sys.argv[1:])
for name, source, target in zip(arguments, arguments, arguments):
    path = pathlib.Path(__file__).with_name(f"{name}.onnx")
    program = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = program.run(None, {"x": np.load(source, allow_pickle=False)})
    np.savez(target, **{output.name: value for output, value in zip(program.get_outputs(), made)})
'''
SIZES = ("examples", "height", "width")


def file(name: str) -> str:
    """The file of the program of that name."""
    return f"{name}.onnx"


def write(program: Program, path: pathlib.Path) -> None:
    """Trace a program and write it.

    Raises:
        ConfigError: the package onnx or onnxruntime is missing, or an operation of the program has no counterpart here.
    """
    try:
        onnx = importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(missing("The format `onnx`", "onnx", error)) from error
    sizes = iter(SIZES[1:])
    letters = ["examples", *(next(sizes) if size is None else str(size) for size in program.shape)]
    x = jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(letters)), program.dtype)
    traced = jax.make_jaxpr(program.function)(x)
    names = sorted(jax.eval_shape(program.function, x))  # as JAX orders the outputs of a dict
    graph = Graph(onnx)
    outputs = graph.inline(traced.jaxpr, traced.consts, ["x"])
    for name, output in zip(names, outputs, strict=True):
        graph.nodes.append(onnx.helper.make_node("Identity", [output], [name]))
    types = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)) for aval in (x, *traced.out_avals)]
    shapes = [[str(size) if not isinstance(size, int) else size for size in a.shape] for a in (x, *traced.out_avals)]
    values = [onnx.helper.make_tensor_value_info(*v) for v in zip(["x", *names], types, shapes, strict=True)]
    made = onnx.helper.make_graph(graph.nodes, "flaxae", values[:1], values[1:], graph.constants)
    model = onnx.helper.make_model(
        made, producer_name="flaxae", ir_version=9, opset_imports=[onnx.helper.make_opsetid("", OPSET)]
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


class Size:
    """A size that is computed where the program runs: an integer tensor, with the arithmetic of JAX's symbols."""

    def __init__(self, graph: "Graph", name: str):
        self.graph, self.name = graph, name

    def _with(self, operation: str, other: "Size | int") -> "Size":
        other_name = other.name if isinstance(other, Size) else self.graph.constant(np.array([other], np.int64))
        return Size(self.graph, self.graph.node(operation, self.name, other_name))

    def __add__(self, other: "Size | int") -> "Size":
        return self._with("Add", other)

    def __mul__(self, other: "Size | int") -> "Size":
        return self._with("Mul", other)

    def __sub__(self, other: "Size | int") -> "Size":
        return self._with("Sub", other)

    def __neg__(self) -> "Size":
        return self * -1

    def __rsub__(self, other: int) -> "Size":
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def __mod__(self, other: int) -> "Size":
        return self._with("Mod", other)  # of the divisor's sign, as in Python

    def __floordiv__(self, other: int) -> "Size":
        return (self - self % other)._with("Div", other)


class Graph:
    """Nodes and constants, and how each operation of JAX becomes some of them."""

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.known: dict[Any, str] = {}  # names of constants and sizes

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """The name of a constant array."""
        value = np.asarray(value)
        key = (value.shape, value.dtype.str, value.tobytes())
        if key not in self.known:
            self.known[key] = f"c{len(self.constants)}"
            self.constants.append(self.onnx.numpy_helper.from_array(value, self.known[key]))
        return self.known[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def size(self, symbol: Any) -> str:
        """The name of a size, an integer or a symbol's expression, as a tensor of one number."""
        if isinstance(symbol, int | np.integer):
            return self.ints(int(symbol))
        text = str(symbol)
        if text not in self.known:
            shape = self.node("Shape", "x")
            places = {"examples": 0, "height": 1, "width": 2}
            known: dict[str, Any] = {
                name: Size(self, self.node("Gather", shape, self.ints(place)))
                for name, place in places.items()
                if name in text
            }
            known |= {"floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "__builtins__": {}}
            self.known[text] = eval(text, known).name  # JAX's symbols print as Python
        return self.known[text]

    def shape(self, shape: Sequence[Any]) -> str:
        """The name of a shape."""
        if all(isinstance(size, int) for size in shape):
            return self.constant(np.array(shape, np.int64))
        return self.node("Concat", *map(self.size, shape), axis=0)

    def type(self, dtype: Any) -> int:
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def inline(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[str]) -> list[str]:
        """Add all operations of a jaxpr; returns the names of its outputs."""
        names: dict[Any, str] = dict(zip(jaxpr.invars, inputs, strict=True))
        names |= {var: self.constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}

        def name(var: Any) -> str:
            return self.constant(np.asarray(var.val, var.aval.dtype)) if hasattr(var, "val") else names[var]

        for equation in jaxpr.eqns:
            given = [name(var) for var in equation.invars]
            outputs = self.operation(equation, given)
            names |= dict(zip(equation.outvars, outputs, strict=True))
        return [name(var) for var in jaxpr.outvars]

    def operation(self, equation: Any, given: list[str]) -> list[str]:
        """The outputs of an operation of JAX."""
        kind, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if kind in CALLS:
            closed = hasattr(inner, "consts")
            return self.inline(inner.jaxpr if closed else inner, inner.consts if closed else (), given)
        if kind in ELEMENTWISE:
            return [self.node(ELEMENTWISE[kind], *given)]
        if kind not in OTHERS:
            raise ConfigError(f"The operation {kind!r} of this model has no counterpart in ONNX here; take stablehlo.")
        made = OTHERS[kind](self, equation, given, params)
        return made if isinstance(made, list) else [made]


CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "abs": "Abs", "sign": "Sign", "sqrt": "Sqrt",
    "floor": "Floor", "ceil": "Ceil", "round": "Round", "erf": "Erf", "sin": "Sin", "cos": "Cos",
    "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
    "lt_to": "Less", "le_to": "LessOrEqual",
    "and": "And", "or": "Or", "not": "Not", "stop_gradient": "Identity", "copy": "Identity", "copy_p": "Identity",
    "reduce_precision": "Identity", "optimization_barrier": "Identity",
}  # fmt: skip


def _one(graph: Graph, equation: Any) -> str:
    return graph.constant(np.ones((), equation.invars[0].aval.dtype))


def _reduce(operation: str) -> Callable:
    def made(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
        return graph.node(operation, given[0], graph.ints(*params["axes"]), keepdims=0)

    return made


def _arg(operation: str) -> Callable:
    def made(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
        is_bool = equation.invars[0].aval.dtype == bool
        values = graph.node("Cast", given[0], to=graph.type(np.int32)) if is_bool else given[0]
        found = graph.node(operation, values, axis=params["axes"][0], keepdims=0)
        return graph.node("Cast", found, to=graph.type(params["index_dtype"]))

    return made


def _select(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    return graph.node("Where", given[0], given[2], given[1])


def _cast(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    return graph.node("Cast", given[0], to=graph.type(params["new_dtype"]))


def _reshape(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    return graph.node("Reshape", given[0], graph.shape(equation.outvars[0].aval.shape))


def _broadcast(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    before, after = equation.invars[0].aval.shape, params["shape"]
    aligned = [1] * len(after)
    for size, axis in zip(before, params["broadcast_dimensions"], strict=True):
        aligned[axis] = size
    return graph.node("Expand", graph.node("Reshape", given[0], graph.shape(aligned)), graph.shape(after))


def _transpose(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    return graph.node("Transpose", given[0], perm=list(params["permutation"]))


def _concatenate(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    return graph.node("Concat", *given, axis=params["dimension"])


def _stack(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    axis = graph.ints(params["axis"])
    return graph.node("Concat", *(graph.node("Unsqueeze", name, axis) for name in given), axis=params["axis"])


def _slice(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    starts, limits = params["start_indices"], params["limit_indices"]
    axes = graph.ints(*range(len(starts)))
    steps = graph.ints(*(params["strides"] or [1] * len(starts)))
    return graph.node("Slice", given[0], graph.shape(starts), graph.shape(limits), axes, steps)


def _split(graph: Graph, equation: Any, given: list[str], params: Any) -> list[str]:
    ends = np.cumsum([0, *params["sizes"]]).tolist()
    axis = graph.ints(params["axis"])
    return [graph.node("Slice", given[0], graph.ints(a), graph.ints(b), axis) for a, b in itertools.pairwise(ends)]


def _pad(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    low, high, interior = zip(*params["padding_config"], strict=True)
    if any(interior):
        raise ConfigError("Padding between values has no counterpart in ONNX; take stablehlo.")
    return graph.node("Pad", given[0], graph.shape([*low, *high]), given[1])  # below 0 it crops


def _iota(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    shape, axis = equation.outvars[0].aval.shape, params["dimension"]
    count = graph.node("Squeeze", graph.size(shape[axis]))
    first, step = (graph.constant(np.array(number, np.int64)) for number in (0, 1))
    values = graph.node("Range", first, count, step)
    values = graph.node("Cast", values, to=graph.type(params["dtype"]))
    aligned = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    return graph.node("Expand", graph.node("Reshape", values, graph.shape(aligned)), graph.shape(shape))


def _dot(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in equation.invars[0].aval.shape]
    right = ["" for _ in equation.invars[1].aval.shape]
    for i, j in (*zip(left_sum, right_sum, strict=True), *zip(left_batch, right_batch, strict=True)):
        right[j] = left[i]
    right = [letter or next(letters) for letter in right]
    out = [left[i] for i in left_batch]
    out += [letter for i, letter in enumerate(left) if i not in (*left_sum, *left_batch)]
    out += [letter for j, letter in enumerate(right) if j not in (*right_sum, *right_batch)]
    return graph.node("Einsum", *given, equation=f"{''.join(left)},{''.join(right)}->{''.join(out)}")


def _conv(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    numbers = params["dimension_numbers"]
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise ConfigError("A dilated input of a convolution has no counterpart in ONNX; take stablehlo.")
    x = graph.node("Transpose", given[0], perm=list(numbers.lhs_spec))
    kernel = graph.node("Transpose", given[1], perm=list(numbers.rhs_spec))
    low, high = zip(*params["padding"], strict=True)
    y = graph.node(
        "Conv",
        x,
        kernel,
        strides=list(params["window_strides"]),
        pads=[*low, *high],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.node("Transpose", y, perm=np.argsort(numbers.out_spec).tolist())


def _max_pool(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    """Over height and width of [batch, height, width, channels]."""
    low, high = zip(*params["padding"][1:3], strict=True)
    x = graph.node("Transpose", given[0], perm=[0, 3, 1, 2])
    window, strides = list(params["window_dimensions"][1:3]), list(params["window_strides"][1:3])
    y = graph.node("MaxPool", x, kernel_shape=window, strides=strides, pads=[*low, *high])
    return graph.node("Transpose", y, perm=[0, 2, 3, 1])


def _any(operation: str) -> Callable:
    def made(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
        numbers = graph.node("Cast", given[0], to=graph.type(np.int32))
        found = graph.node(operation, numbers, graph.ints(*params["axes"]), keepdims=0)
        return graph.node("Cast", found, to=graph.type(np.bool_))

    return made


def _size(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    number = graph.node("Squeeze", graph.size(params["dim"]))
    return graph.node("Cast", number, to=graph.type(equation.outvars[0].aval.dtype))


def _top_k(graph: Graph, equation: Any, given: list[str], params: Any) -> list[str]:
    values, places = f"v{len(graph.nodes)}", f"v{len(graph.nodes)}i"
    k = graph.ints(params["k"])
    graph.nodes.append(graph.onnx.helper.make_node("TopK", [given[0], k], [values, places], axis=-1))
    return [values, graph.node("Cast", places, to=graph.type(np.int32))]


def _gather(graph: Graph, equation: Any, given: list[str], params: Any) -> str:
    """A slice that begins at an index, or along one axis, as of `jnp.take`, or by the indices of the first axes."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    shape = equation.invars[0].aval.shape
    axes = numbers.start_index_map
    places = graph.node("Cast", given[1], to=graph.type(np.int64))
    rest = [i for i in range(len(shape)) if i not in axes]
    ahead = equation.invars[1].aval.ndim - 1  # axes of the indices
    if ahead == 0 and not numbers.operand_batching_dims:
        ends = graph.node("Add", places, graph.shape([sizes[i] for i in axes]))
        kept = [i for i in range(len(shape)) if i not in axes and str(sizes[i]) != str(shape[i])]
        made = graph.node("Slice", given[0], places, ends, graph.ints(*axes))
        if not kept:
            return graph.node("Reshape", made, graph.shape(equation.outvars[0].aval.shape))
    whole = numbers.collapsed_slice_dims == axes and all(str(sizes[i]) == str(shape[i]) for i in rest)
    if whole and not numbers.operand_batching_dims:
        if len(axes) == 1 and numbers.offset_dims == tuple(i if i < axes[0] else i + ahead - 1 for i in rest):
            return graph.node("Gather", given[0], graph.node("Squeeze", places, graph.ints(-1)), axis=axes[0])
        if axes == tuple(range(len(axes))) and numbers.offset_dims == tuple(range(ahead, ahead + len(rest))):
            return graph.node("GatherND", given[0], places)
    raise ConfigError("A way of indexing in this model has no counterpart in ONNX here; take stablehlo.")


OTHERS: dict[str, Callable] = {
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _any("ReduceMax"),
    "reduce_and": _any("ReduceMin"),
    "dim_as_value": _size,
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "select_n": _select,
    "convert_element_type": _cast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "iota": _iota,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "reduce_window_max": _max_pool,
    "top_k": _top_k,
    "gather": _gather,
    "ne": lambda graph, equation, given, params: graph.node("Not", graph.node("Equal", *given)),
    "square": lambda graph, equation, given, params: graph.node("Mul", given[0], given[0]),
    "rsqrt": lambda graph, equation, given, params: graph.node("Reciprocal", graph.node("Sqrt", given[0])),
    "integer_pow": lambda graph, equation, given, params: graph.node(
        "Pow", given[0], graph.constant(np.asarray(params["y"], equation.invars[0].aval.dtype))
    ),
    "log1p": lambda graph, equation, given, params: graph.node(
        "Log", graph.node("Add", given[0], _one(graph, equation))
    ),
    "expm1": lambda graph, equation, given, params: graph.node(
        "Sub", graph.node("Exp", given[0]), _one(graph, equation)
    ),
    "clamp": lambda graph, equation, given, params: graph.node("Min", graph.node("Max", given[1], given[0]), given[2]),
}
