"""What a page needs to explore a map: the points, what they may be coloured by, and pictures or values of examples.

The page draws it with explore.js, beside this file. Names and values are only ever set as text there.
"""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxae.errors import DataError
from flaxae.printing import printable
from flaxae.runs.plots import drawable

MOST = 2000  # points
MOST_PIXELS = 2_000_000  # of all pictures together
SIDE = 32  # pixels: larger pictures are made smaller
MOST_VALUES = 12  # of an example that is not a picture
SCRIPT = Path(__file__).with_name("explore.js")

Images = Float[np.ndarray, "examples height width channels"]


@dataclasses.dataclass(frozen=True, eq=False)
class Explore:
    """A map to explore. If there are more than `MOST` points, the first ones are shown.

    Args:
        points: places in the map, of two or three coordinates.
        rows: what each is called, such as its row or its file; it is what is saved of selected points.
        colours: by name, what points may be coloured by: texts, such as labels, or numbers.
        examples, made: pictures [n, height, width, channels] in [0, 1], or values [n, features], of the examples and
            their reconstructions.
        columns: the names of the values.
        decoded: of pictures, those decoded on a grid over the map, with as many places along each coordinate, [places,
            height, width, channels]; from one to the next, the first coordinate changes, after all of it the second.

    Raises:
        DataError: the parts are not of the same examples, or the points don't have two or three coordinates.
    """

    points: Float[np.ndarray, "points axes"]
    rows: Sequence[str]
    colours: Mapping[str, Sequence[str] | np.ndarray]
    examples: np.ndarray
    made: np.ndarray
    columns: Sequence[str] = ()
    decoded: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = {len(part) for part in (self.points, self.rows, self.examples, self.made, *self.colours.values())}
        if len(sizes) != 1 or self.points.shape[1:] not in ((2,), (3,)):
            raise DataError(
                f"A map to explore has points of shape {self.points.shape}, and parts of {sorted(sizes)} examples; "
                "expected [n, 2] or [n, 3], and n of all."
            )

    def to_json(self) -> str:
        """All of it as JSON that can stand in a page: no text in it ends the element it is in."""
        pictures = self.examples.ndim == 4
        pixels = min(self.examples.shape[1], SIDE) * min(self.examples.shape[2], SIDE) if pictures else 1
        n = min(len(self.points), MOST, MOST_PIXELS // pixels)
        content: dict[str, object] = {
            "points": np.round(self.points[:n].astype(float), 4).tolist(),
            "rows": [printable(str(row)) for row in self.rows[:n]],
            "colours": {printable(name): _values(values[:n]) for name, values in self.colours.items()},
        }
        if pictures:
            content |= {"examples": _sheet(self.examples[:n]), "made": _sheet(self.made[:n])}
        else:
            content["columns"] = [printable(name) for name in self.columns[:MOST_VALUES]]
            content["values"] = [_rounded(part[:n]) for part in (self.examples, self.made)]
        if self.decoded is not None:
            content["decoded"] = _sheet(self.decoded)
            content["side"] = round(len(self.decoded) ** (1 / self.points.shape[1]))
            content["reach"] = np.stack([self.points.min(axis=0), self.points.max(axis=0)]).astype(float).tolist()
        text = json.dumps(content, allow_nan=False)
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _values(values: Sequence[str] | np.ndarray) -> list[str] | list[float | None]:
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.number):
        return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.astype(float)]
    return [printable(str(value)) for value in values]


def _rounded(values: np.ndarray) -> list[list[str]]:
    flat = values.reshape(len(values), -1)[:, :MOST_VALUES]
    return [[f"{value:.4g}" for value in row] for row in flat]


def _sheet(images: Images) -> dict[str, object]:
    """The pictures side by side in one PNG, and how they lie in it."""
    from PIL import Image

    shown = np.round(255 * np.clip(drawable(images), 0, 1)).astype(np.uint8)
    if shown.ndim == 4 and shown.shape[-1] == 1:
        shown = shown[..., 0]
    step = max(1, math.ceil(max(shown.shape[1:3]) / SIDE))
    shown = shown[:, ::step, ::step]
    n, height, width = shown.shape[:3]
    across = math.ceil(math.sqrt(n))
    sheet = np.zeros((math.ceil(n / across), across, *shown.shape[1:]), np.uint8)
    sheet.reshape(-1, *shown.shape[1:])[:n] = shown
    sheet = sheet.swapaxes(1, 2).reshape(sheet.shape[0] * height, across * width, *shown.shape[3:])
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"source": source, "across": across, "width": width, "height": height}
