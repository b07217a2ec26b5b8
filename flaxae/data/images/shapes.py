"""Which axis of an array holds its channels."""

import numpy as np


def channels_last(x: np.ndarray) -> np.ndarray:
    """Images with their channels on the last axis: those of torch, [..., channels, height, width], are turned."""
    return np.moveaxis(x, -3, -1) if is_channel_first(x.shape) else x


def is_channel_first(shape: tuple[int, ...]) -> bool:
    """Whether images of that shape, [(n,) channels, height, width], have 1, 3 or 4 channels before their pixels."""
    return len(shape) >= 3 and shape[-3] in (1, 3, 4) and min(shape[-2:]) > 4
