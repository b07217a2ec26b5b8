"""Python functions that compiled programs call on CPU with the addresses of their arrays, to hand them to a C library.

`jax.pure_callback` gives a Python function arrays, and copies what it returns. Here the function writes to where XLA
wants the result, so that large arrays cost nothing. The structures are those of `xla/ffi/api/c_api.h`, as far as they
are read; their parts have kept their places since the first version.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import jax


class _Api(ctypes.Structure):
    _fields_ = (
        ("size_and_extension", ctypes.c_size_t * 2),
        ("version_size_and_extension", ctypes.c_size_t * 2),
        ("version", ctypes.c_int * 2),  # major, minor
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)),
    )


class _Arrays(ctypes.Structure):
    """Arguments or results."""

    _fields_ = (
        ("size_and_extension", ctypes.c_size_t * 2),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))),
    )

    def addresses(self) -> list[int]:
        """Of each one's data, which stand after a size, an extension and a type, 8 bytes each."""
        return [self.buffers[i][3] for i in range(self.count)]


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("version_size_and_extension", ctypes.c_size_t * 2),
        ("version", ctypes.c_int * 2),
        ("traits", ctypes.c_uint32),
    )


class _Extension(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


class _Frame(ctypes.Structure):
    """A call."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("arguments", _Arrays),
        ("results", _Arrays),
    )


class _Error(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


_ASKS_FOR_METADATA = 1  # the type of the extension of a call that asks which version a target is of
_INTERNAL = 13  # the code of an error
_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))
_registered: list[Any] = []  # which programs may call for as long as the process lives


def register(name: str, function: Callable[..., None]) -> None:
    """Let compiled programs call `function` by that name, as `jax.ffi.ffi_call(name, …)` has it.

    Args:
        name: the same for the same function in every process, because programs are cached.
        function: takes the addresses of the arguments and then of the results, row by row each. XLA calls it on
            several threads. What it raises becomes an error of JAX.
    """

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.type == _ASKS_FOR_METADATA:
            frame.extension.contents.metadata.contents.version = frame.api.contents.version
            return None
        try:
            function(*frame.arguments.addresses(), *frame.results.addresses())
        except BaseException as error:  # an interrupt too: XLA runs the smallest programs on the main thread
            said = _Error(ctypes.sizeof(_Error), None, f"{name}: {error}".encode(), _INTERNAL)
            return frame.api.contents.create_error(ctypes.addressof(said))
        return None

    handler = _Handler(handle)
    _registered.append(handler)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
