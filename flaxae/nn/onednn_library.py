"""oneDNN's C interface: convolutions and products that are called with the addresses of their arrays.

The numbers are those of its headers `dnnl_types.h` and `dnnl_common_types.h`.
"""

import ctypes
import functools
import os
import threading
from importlib import metadata
from typing import Any, NamedTuple

PACKAGE = "onednn-cpu-gomp"  # oneDNN for CPUs alone, with OpenMP's threads
Sizes = tuple[int, ...]
Handle = ctypes.c_void_p  # of something that oneDNN made

_CPU, _IN_ORDER, _ANY_LAYOUT, _TRAINING, _DIRECT, _ALLOCATED = 1, 1, 1, 64, 1, -1
_TYPES = {"float32": 3, "bfloat16": 2}
_SOURCE, _WEIGHTS, _RESULT = 1, 33, 17  # arguments, of copies and products too
_CONVOLUTION = {  # the arguments of each computation, with the result last
    "convolve": {"x": _SOURCE, "kernel": _WEIGHTS, "y": _RESULT},
    "to_image": {"y": 145, "kernel": _WEIGHTS, "x": 129},
    "to_kernel": {"x": _SOURCE, "y": 145, "kernel": 161},
}
_LAYOUT_OF = {_WEIGHTS: 131, 161: 132}  # the questions for the layout of these

_alone = threading.Lock()  # every call uses all cores, so one runs at a time


class Windows(NamedTuple):
    """Where the windows of a convolution are. Pairs are for (height, width)."""

    image: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    low: tuple[int, int]  # padding above, and to the left
    high: tuple[int, int]  # padding below, and to the right; below 0 for what no window reaches
    out: tuple[int, int]  # how many windows


class Library:
    """oneDNN, loaded. What it makes is kept for as long as the process lives."""

    def __init__(self, path: str):
        self.calls = ctypes.CDLL(path)
        self.calls.dnnl_primitive_desc_query_md.restype = Handle
        self.engine = self.make("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self.make("stream_create", self.engine, _IN_ORDER)

    def do(self, function: str, *arguments: Any) -> None:
        if status := getattr(self.calls, f"dnnl_{function}")(*arguments):
            raise RuntimeError(f"oneDNN's {function} failed with status {status}.")

    def make(self, function: str, *arguments: Any) -> Handle:
        made = Handle()
        self.do(function, ctypes.byref(made), *arguments)
        return made

    def describe(self, function: str, *arguments: Any) -> Handle:
        """What a computation will be, without special attributes."""
        return self.make(f"{function}_primitive_desc_create", *arguments, None)

    def layout(self, sizes: Sizes, dtype: str, strides: Sizes | None = None) -> Handle:
        """That of an array; without strides, the one that a computation chooses."""
        given = len(sizes), _int64s(sizes), _TYPES[dtype]
        if strides is None:
            return self.make("memory_desc_create_with_tag", *given, _ANY_LAYOUT)
        return self.make("memory_desc_create_with_strides", *given, _int64s(strides))

    def chosen_layout(self, description: Handle, argument: int) -> Handle:
        return Handle(self.calls.dnnl_primitive_desc_query_md(description, _LAYOUT_OF[argument], 0))

    def memory(self, layout: Handle, address: int | None = None) -> Handle:
        return self.make("memory_create", layout, self.engine, Handle(address))

    def step(self, description: Handle, memories: dict[int, Handle]) -> tuple[Handle, Any]:
        """A computation that is ready, and its arguments."""
        return self.make("primitive_create", description), (_Argument * len(memories))(*memories.items())


@functools.cache
def load() -> Library:
    """
    Raises:
        PackageNotFoundError: it isn't installed.
        OSError: it can't be loaded.
    """
    (path,) = [file for file in metadata.files(PACKAGE) or () if file.name == "libdnnl.so.3"]
    name = "OMP_WAIT_POLICY"
    given = os.environ.get(name)
    os.environ.setdefault(name, "passive")  # OpenMP reads it once: its idle threads shall leave the cores to XLA's
    try:
        return Library(os.fspath(path.locate()))
    finally:
        if given is None:
            del os.environ[name]


class Computation:
    """It is called with the addresses of the arguments and of the result."""

    def __init__(self, memories: list[Handle], steps: list[tuple[Handle, Any]]):
        self.memories = memories
        self.steps = steps

    def __call__(self, *addresses: int) -> None:
        library = load()
        with _alone:
            for memory, address in zip(self.memories, addresses, strict=True):
                library.do("memory_set_data_handle", memory, Handle(address))
            for primitive, arguments in self.steps:
                library.do("primitive_execute", primitive, library.stream, len(arguments), arguments)
            library.do("stream_wait", library.stream)


def convolution(name: str, dtype: str, image: Sizes, kernel: Sizes, windows: Windows) -> Computation:
    """A convolution or an adjoint, of channels last and of kernels [height, width, in of a group, out].

    oneDNN has kernels in layouts of its own choice: they are copied before, or after where they are the result.

    Args:
        name: a key of `_CONVOLUTION`.
        dtype: of the arguments, "float32" or "bfloat16". The result is in float32.
    """
    library, numbers = load(), _CONVOLUTION[name]
    *_, result = numbers
    (batch, _, _, channels), (kh, kw, each, out) = image, kernel
    groups = channels // each
    padding = windows.low, tuple(max(n, 0) for n in windows.high)
    moves = [_int64s(pair) for pair in (windows.stride, (0, 0), *padding)]
    # Sizes in oneDNN's order, and strides that say where in memory it all is.
    kernel, strides = (groups, out // groups, each, kh, kw), (out // groups, 1, out, kw * each * out, each * out)

    def channels_last(sizes: Sizes, dtype: str) -> Handle:
        n, height, width, last = sizes
        return library.layout((n, last, height, width), dtype, (height * width * last, 1, width * last, last))

    def layouts(result_type: str) -> dict[str, Handle]:
        types = dict.fromkeys(numbers, dtype) | {result: result_type}
        return {
            "x": channels_last(image, types["x"]),
            "kernel": library.layout(kernel, types["kernel"]),
            "y": channels_last((batch, *windows.out, out), types["y"]),
        }

    def describe(direction: str, *arguments: Any) -> Handle:
        return library.describe(f"convolution_{direction}", library.engine, *arguments)

    def forward(x: Handle, kernel: Handle, y: Handle) -> Handle:
        return describe("forward", _TRAINING, _DIRECT, x, kernel, None, y, *moves)

    given = layouts("float32")
    x, weights, y = given.values()
    if name == "convolve":
        description = forward(**given)
    elif name == "to_image":
        description = describe("backward_data", _DIRECT, x, weights, y, *moves, forward(**layouts(dtype)))
    else:
        description = describe("backward_weights", _DIRECT, x, weights, None, y, *moves, forward(**layouts(dtype)))

    own = library.chosen_layout(description, numbers["kernel"])
    given["kernel"] = library.layout(kernel, "float32" if result == "kernel" else dtype, strides)
    memories = {role: library.memory(layout) for role, layout in given.items()}
    outer, inner = memories["kernel"], library.memory(own, _ALLOCATED)
    compute = library.step(
        description, {numbers[role]: memories[role] for role in numbers} | {numbers["kernel"]: inner}
    )
    source, target = (
        ((own, inner), (given["kernel"], outer)) if result == "kernel" else ((given["kernel"], outer), (own, inner))
    )
    between = library.describe("reorder", source[0], library.engine, target[0], library.engine)
    copy = library.step(between, {_SOURCE: source[1], _RESULT: target[1]})
    return Computation([memories[role] for role in numbers], [compute, copy] if result == "kernel" else [copy, compute])


def multiply(a: Sizes, b: Sizes, transposed: bool) -> Computation:
    """Products of [products, m, k] and [products, k, n]; if transposed, the first is [products, k, m]."""
    library = load()
    products, k, n = b
    m = a[2 if transposed else 1]
    layouts = [
        library.layout((products, m, k), "float32", (m * k, 1, m) if transposed else (m * k, k, 1)),
        library.layout(b, "float32", (k * n, n, 1)),
        library.layout((products, m, n), "float32", (m * n, n, 1)),
    ]
    description = library.describe("matmul", library.engine, layouts[0], layouts[1], None, layouts[2])
    memories = [library.memory(layout) for layout in layouts]
    step = library.step(description, dict(zip((_SOURCE, _WEIGHTS, _RESULT), memories, strict=True)))
    return Computation(memories, [step])


class _Argument(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("memory", Handle))


def _int64s(numbers: Sizes) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)
