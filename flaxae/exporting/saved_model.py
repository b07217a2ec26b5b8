"""Programs as TensorFlow's SavedModel, for TensorFlow Serving and what reads that: the StableHLO program within one."""

import importlib
import os
import pathlib
from typing import Any

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func
from jax.extend.mlir.dialects import stablehlo as dialect

from flaxae.errors import ConfigError, missing
from flaxae.exporting import stablehlo
from flaxae.exporting.tracing import Program

VERSION = "1.8.0"  # of StableHLO that is written, of 2024: TensorFlow reads none as new as JAX's
USE = '''"""Run an exported program. It needs TensorFlow: python use.py reconstruct input.npy output.npz"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

arguments = iter(sys.argv[1:])
for name, source, target in zip(arguments, arguments, arguments):
    path = pathlib.Path(__file__).with_name(f"{name}.savedmodel")
    program = tf.saved_model.load(path).signatures["serving_default"]
    made = program(x=tf.constant(np.load(source, allow_pickle=False)))
    np.savez(target, **{key: value.numpy() for key, value in made.items()})
'''


def file(name: str) -> str:
    """The folder of the program of that name."""
    return f"{name}.savedmodel"


def write(program: Program, path: pathlib.Path) -> None:
    """Trace a program and write it, with the signature `serving_default`: from `x` to what the program gives by name.

    Raises:
        ConfigError: TensorFlow is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # which it is loaded with: no lines about the processor
    try:
        tf: Any = importlib.import_module("tensorflow")
        xla: Any = importlib.import_module("tensorflow.compiler.tf2xla.python.xla")
    except ImportError as error:
        raise ConfigError(missing("The format `saved-model`", "saved-model", error)) from error
    exported = stablehlo.exported(program)
    content = _older(exported.mlir_module_serialized)
    shapes = [[size if isinstance(size, int) else None for size in aval.shape] for aval in exported.out_avals]

    def call(x: Any) -> dict[str, Any]:
        made = xla.call_module(
            [x],
            version=exported.calling_convention_version,
            Tout=[tf.as_dtype(aval.dtype.name) for aval in exported.out_avals],
            Sout=[tf.TensorShape(shape) for shape in shapes],
            platforms=[platform.upper() for platform in exported.platforms],
            module=content,
            function_list=[],
            has_token_input_output=False,
            disabled_checks=[],
        )
        for value, shape in zip(made, shapes, strict=True):
            value.set_shape(shape)
        return exported.out_tree.unflatten(made)

    takes = tf.TensorSpec([None, *program.shape], program.dtype, "x")
    saved = tf.Module()
    saved.call = tf.function(call, input_signature=[takes], autograph=False)
    tf.saved_model.save(saved, os.fspath(path), signatures={"serving_default": saved.call})


def _older(program: bytes) -> bytes:
    """The program in `VERSION`. Composite operations become calls: only of those can TensorFlow find the sizes."""
    with ir.Context() as context, ir.Location.unknown():
        module = dialect.deserialize_portable_artifact(context, program)
        composed = []

        def collect(operation: Any) -> Any:
            if operation.name == "stablehlo.composite":
                composed.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(collect)
        for operation in composed:
            with ir.InsertionPoint(operation):
                types = [result.type for result in operation.results]
                call = func.CallOp(types, operation.attributes["decomposition"], list(operation.operands))
            for old, new in zip(operation.results, call.results, strict=True):
                old.replace_all_uses_with(new)
            operation.erase()
        return dialect.serialize_portable_artifact(module, VERSION)
