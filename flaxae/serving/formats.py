"""What requests hold and what is answered: JSON, CSV, `.npy` and PNG."""

import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from flaxae.errors import DataError
from flaxae.trained import Trained

JSON, CSV, NPY, PNG = "application/json", "text/csv", "application/x-npy", "image/png"
JPEG = "image/jpeg"  # read, never written
PIXELS = 2**24  # of one image: a small file may claim any size
COLUMNS = 10_000  # of a table in CSV
TYPES = (JSON, CSV, NPY, PNG, JPEG)


def read(body: bytes, kind: str, trained: Trained, most: int) -> Any:
    """The examples in a request's body, an array or a DataFrame, in the data's own units.

    Args:
        kind: the body's media type, one of `TYPES`.
        most: examples that are taken.

    Raises:
        DataError: they can't be read.
    """
    try:
        x = {JSON: _json, CSV: _csv, NPY: _npy, PNG: _image, JPEG: _image}[kind](body, trained)
    except DataError:
        raise
    except Exception as error:  # libraries raise many types on damaged bodies
        why = "" if kind in (PNG, JPEG) else f": {' '.join(str(error).split())[:200] or type(error).__name__}"
        raise DataError(f"The body is no {kind} that can be read{why}.") from error
    if not isinstance(x, pd.DataFrame) and x.dtype.kind not in "uif":
        raise DataError(f"The values are {x.dtype}; expected numbers.")
    if len(x) == 0:
        raise DataError("The body holds no examples.")
    if len(x) > most:
        raise DataError(f"The body holds {len(x):,} examples; at most {most:,} are taken at once.")
    if isinstance(x, np.ndarray) and x.dtype != trained.scaling.dtype:
        x = _converted(x, trained.scaling.dtype)
    return x


def write(made: dict[str, Any], kind: str, trained: Trained) -> bytes:
    """Results, by name, in that media type.

    Raises:
        DataError: they don't fit it.
    """
    if kind == JSON:
        return json.dumps({name: _plain(value) for name, value in made.items()}, allow_nan=False).encode()
    first = next(iter(made.values()))
    if kind == CSV:
        return _table(made, first).to_csv(index=False).encode()
    values = first.to_numpy(np.float32) if isinstance(first, pd.DataFrame) else np.asarray(first)
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        return file.getvalue()
    if values.dtype != np.uint8:  # a map of heat, or pixels of 16 bits
        values = values.astype(np.float32)
        values = (255 * np.clip(values / max(float(np.nanmax(values)), 1e-12), 0, 1)).astype(np.uint8)
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[-1] not in (1, 3, 4)) or len(values) != 1:
        raise DataError(f"The result has shape {list(values.shape)}, which is no image; ask for {JSON} or {NPY}.")
    image = values[0]
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _json(body: bytes, trained: Trained) -> Any:
    """{"x": [[…], …]}, or for tables {"rows": [{"column": value, …}, …]}."""
    given = json.loads(body)
    if not isinstance(given, dict) or not set(given) & {"x", "rows"}:
        raise DataError('The body is JSON without "x", an array [examples, …], and without "rows", a list of objects.')
    if "rows" in given:
        return pd.DataFrame.from_records(given["rows"])
    return np.asarray(given["x"])


def _csv(body: bytes, trained: Trained) -> Any:
    columns = 1 + body.partition(b"\n")[0].count(b",")
    if columns > COLUMNS:
        raise DataError(f"The table has {columns:,} columns; at most {COLUMNS:,} are taken.")
    frame = pd.read_csv(io.BytesIO(body))
    return frame if trained.columns is not None and trained.framing is None else frame.to_numpy(np.float32)


def _npy(body: bytes, trained: Trained) -> np.ndarray:
    file = io.BytesIO(body)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize > len(body) - file.tell():  # before so much memory is taken
        raise DataError(f"The body is cut off: its header says {list(shape)} of {dtype}.")
    return np.load(io.BytesIO(body), allow_pickle=False)


def _image(body: bytes, trained: Trained) -> np.ndarray:
    if trained.kind != "image":
        raise DataError(f"The body is an image; the model was trained on data of the kind {trained.kind}.")
    with Image.open(io.BytesIO(body), formats=["PNG", "JPEG"]) as image:
        if image.width * image.height > PIXELS:
            raise DataError(f"The image has {image.width} × {image.height} pixels; at most {PIXELS:,} are taken.")
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[trained.shape[-1]]
        pixels = np.asarray(image if image.mode == mode or image.mode.startswith("I;16") else image.convert(mode))
    return pixels.reshape(1, *pixels.shape[:2], -1)


def _converted(x: np.ndarray, dtype: str) -> np.ndarray:
    """x in the type of the training data.

    Raises:
        DataError: values would be lost.
    """
    if np.dtype(dtype).kind == "u":
        full = np.iinfo(dtype).max
        if x.dtype.kind == "f" and not (x == np.rint(x)).all():
            raise DataError(f"The model was trained on whole numbers from 0 to {full} ({dtype}); there are fractions.")
        if x.min() < 0 or x.max() > full:
            raise DataError(f"The model was trained on whole numbers from 0 to {full} ({dtype}); others are given.")
    return x.astype(dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return json.loads(str(value.to_json(orient="records")))
    value = np.asarray(value)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        plain = value.astype(object)
        plain[~np.isfinite(value)] = None
        return plain.tolist()
    return value.tolist()


def _table(made: dict[str, Any], first: Any) -> pd.DataFrame:
    if isinstance(first, pd.DataFrame):
        return first
    columns: dict[str, np.ndarray] = {}
    for name, value in made.items():
        flat = np.asarray(value).reshape(len(first), -1)
        if name != "heat":
            columns |= {name: flat[:, 0]} if flat.shape[1] == 1 else {f"{name}_{i}": v for i, v in enumerate(flat.T)}
    return pd.DataFrame(columns)
