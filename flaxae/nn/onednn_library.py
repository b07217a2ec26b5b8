"""oneDNN's C interface: convolutions and products that are called with the addresses of their arrays.

The numbers are those of its headers `dnnl_types.h` and `dnnl_common_types.h`.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from importlib import metadata
from typing import Any

PACKAGE = "onednn-cpu-gomp"  # oneDNN for CPUs alone, with OpenMP's threads
Sizes = tuple[int, ...]
Handle = ctypes.c_void_p  # of something that oneDNN made

_CPU, _IN_ORDER, _ANY_LAYOUT, _TRAINING, _DIRECT, _ALLOCATED = 1, 1, 1, 64, 1, -1
_TYPES = {"float32": 3, "bfloat16": 2}
_SOURCE, _WEIGHTS, _RESULT, _RESULT_GRADIENT, _WEIGHTS_GRADIENT = 1, 33, 17, 145, 161  # arguments
_SCRATCHPAD, _BY_USER = 80, 1
_LAYOUT_OF = {_WEIGHTS: 131, _WEIGHTS_GRADIENT: 132, _SCRATCHPAD: 136}  # the questions for the layout of these

_alone = threading.Lock()  # every call uses all cores, so one runs at a time


class Library:
    """oneDNN, loaded. What it makes is kept for as long as the process lives."""

    def __init__(self, path: str):
        self.calls = ctypes.CDLL(path)
        self.calls.dnnl_primitive_desc_query_md.restype = Handle
        self.engine = self.make("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self.make("stream_create", self.engine, _IN_ORDER)
        # Without this, oneDNN's own scratchpad is of the thread that prepares a computation; XLA's threads have none.
        self.attributes = self.make("primitive_attr_create")
        self.do("primitive_attr_set_scratchpad_mode", self.attributes, _BY_USER)

    def do(self, function: str, *arguments: Any) -> None:
        if status := getattr(self.calls, f"dnnl_{function}")(*arguments):
            raise RuntimeError(f"oneDNN's {function} failed with status {status}.")

    def make(self, function: str, *arguments: Any) -> Handle:
        made = Handle()
        self.do(function, ctypes.byref(made), *arguments)
        return made

    def describe(self, function: str, *arguments: Any) -> Handle:
        """What a computation will be."""
        return self.make(f"{function}_primitive_desc_create", *arguments, self.attributes)

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
        """A computation that is ready, and its arguments. What it needs to work in is kept for it."""
        scratchpad = self.memory(self.chosen_layout(description, _SCRATCHPAD), _ALLOCATED)
        arguments = memories | {_SCRATCHPAD: scratchpad}
        return self.make("primitive_create", description), (_Argument * len(arguments))(*arguments.items())

    def copy(self, layout: Handle, memory: Handle, to_layout: Handle, to_memory: Handle) -> tuple[Handle, Any]:
        """The step that copies a memory to another one, from layout to layout."""
        description = self.describe("reorder", layout, self.engine, to_layout, self.engine)
        return self.step(description, {_SOURCE: memory, _RESULT: to_memory})


@functools.cache
def load() -> Library:
    """The library that `PACKAGE` holds.

    Raises:
        PackageNotFoundError: it isn't installed.
        OSError: it can't be loaded.
    """
    path = next((file for file in metadata.files(PACKAGE) or () if file.name == "libdnnl.so.3"), None)
    if path is None:
        raise FileNotFoundError(f"{PACKAGE} does not hold what its wheel does.")
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


def convolution(name: str, dtype: str, x: Sizes, kernel: Sizes, y: Sizes, pads: Sequence[Sizes]) -> Computation:
    """Of stride 1 and channels last, with kernels [height, width, in of a group, out].

    oneDNN has kernels in layouts of its own choice: they are copied before, or after where they are the result.

    Args:
        name: "convolve", of x and kernel to y; or "to_kernel", of x and y to the kernel.
        dtype: of the arguments, "float32" or "bfloat16". The result is in float32.
        x: sizes of the images, as the next two.
        pads: (above, below) and (left, right).
    """
    library, to_kernel = load(), name == "to_kernel"
    kh, kw, each, out = kernel
    groups = x[3] // each
    # Sizes in oneDNN's order, and strides that say where in memory it all is.
    sizes, strides = (groups, out // groups, each, kh, kw), (out // groups, 1, out, kw * each * out, each * out)

    def channels_last(sizes: Sizes, dtype: str) -> Handle:
        batch, height, width, channels = sizes
        strides = (height * width * channels, 1, width * channels, channels)
        return library.layout((batch, channels, height, width), dtype, strides)

    images, made = channels_last(x, dtype), channels_last(y, dtype if to_kernel else "float32")
    moves = [_int64s(pair) for pair in ((1, 1), (0, 0), *zip(*pads, strict=True))]  # stride, dilation, padding
    described = (_DIRECT, images, library.layout(sizes, dtype), None, made, *moves)
    description = library.describe("convolution_forward", library.engine, _TRAINING, *described)
    of_kernel, of_y = _WEIGHTS, _RESULT
    if to_kernel:
        described = (_DIRECT, images, library.layout(sizes, "float32"), None, made, *moves)
        description = library.describe("convolution_backward_weights", library.engine, *described, description)
        of_kernel, of_y = _WEIGHTS_GRADIENT, _RESULT_GRADIENT
    own = library.chosen_layout(description, of_kernel)
    given = library.layout(sizes, "float32" if to_kernel else dtype, strides)
    x_memory, y_memory, outer = (library.memory(layout) for layout in (images, made, given))
    inner = library.memory(own, _ALLOCATED)
    compute = library.step(description, {_SOURCE: x_memory, of_kernel: inner, of_y: y_memory})
    if to_kernel:
        return Computation([x_memory, y_memory, outer], [compute, library.copy(own, inner, given, outer)])
    return Computation([x_memory, outer, y_memory], [library.copy(given, outer, own, inner), compute])


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
