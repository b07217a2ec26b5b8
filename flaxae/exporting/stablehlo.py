"""Programs in StableHLO, as `jax.export` writes them: for CPU, GPU and TPU, and stable over years of versions."""

import importlib
import pathlib

import jax
from jax import export

from flaxae.errors import ConfigError, missing
from flaxae.exporting.tracing import Program

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
USE = '''"""Run an exported program. It needs jax and NumPy: python use.py reconstruct input.npy output.npz"""

import pathlib
import sys

import numpy as np
from jax import export

arguments = iter(sys.argv[1:])
for name, source, target in zip(arguments, arguments, arguments):
    program = export.deserialize(bytearray(pathlib.Path(__file__).with_name(f"{name}.stablehlo").read_bytes()))
    made = program.call(np.load(source, allow_pickle=False))
    np.savez(target, **{key: np.asarray(value) for key, value in made.items()})
'''


def file(name: str) -> str:
    """The file of the program of that name."""
    return f"{name}.stablehlo"


def write(program: Program, path: pathlib.Path) -> None:
    """Trace a program and write it.

    Raises:
        ConfigError: the package that JAX writes it by is missing.
    """
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise ConfigError(missing("The format `stablehlo`", "stablehlo", error)) from error
    path.write_bytes(exported(program).serialize())


def exported(program: Program) -> export.Exported:
    """The program, its batch and its free sizes as symbols."""
    sizes = iter(("height", "width"))
    letters = ", ".join(["examples", *(next(sizes) if size is None else str(size) for size in program.shape)])
    x = jax.ShapeDtypeStruct(export.symbolic_shape(letters), program.dtype)
    return export.export(jax.jit(program.function), platforms=PLATFORMS)(x)
