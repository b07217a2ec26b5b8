"""Spectra that are masked: an encoder over time looks at the short-time spectrum, the decoder weighs its values.

An example is [frames, 2 × bins]: of each frame the real parts, then the imaginary parts. The code is what the encoder
found beside the spectrum itself, as in a U-Net, so that nothing of the sound has to pass a bottleneck.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import errors, specs

TAPS = 5  # frames that a block looks at
FLOOR = 1e-4  # of magnitudes, under their logarithm: 80 dB under a root mean square of 1

Spectrum = Float[Array, "batch frames parts"]
Found = Float[Array, "batch frames width"]


@specs.register
@dataclasses.dataclass(frozen=True)
class Masks:
    """A time-convolutional network that gives a complex mask of the spectrum. It takes any number of frames.

    Its blocks look at frames 1, 2, 4, … apart, so that the noise of a second around tells what noise there is, as in
    Conv-TasNet (Luo & Mesgarani 2019). A mask lowers a value and turns its phase by a quarter turn at most.

    Args:
        width: channels of the blocks.
        dilations: frames between those that a block looks at, block by block.
    """

    width: int = 192
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1, 2, 4, 8, 16)

    def __post_init__(self) -> None:
        specs.check_sizes(self, "width", "dilations")

    @property
    def context(self) -> int:
        """Frames on either side that a frame's mask depends on."""
        return TAPS // 2 * sum(self.dilations)

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "MaskEncoder":
        """The part from a spectrum to what is found in it.

        Raises:
            ConfigError: examples of that shape are no spectra.
        """
        if len(shape) != 2 or shape[1] % 2:
            raise errors.ConfigError(f"Masks are for spectra, [frames, 2 × bins]; the examples are {list(shape)}.")
        return MaskEncoder(self, shape[1] // 2, rngs=rngs)

    def decoder(
        self, code: tuple[tuple[int, ...], tuple[int, ...]], shape: tuple[int, ...], *, rngs: nnx.Rngs
    ) -> "MaskDecoder":
        """The part from what was found, and the spectrum, to the masked spectrum."""
        return MaskDecoder(code[0][-1], shape[-1] // 2, rngs=rngs)


class MaskEncoder(nnx.Module):
    def __init__(self, spec: Masks, bins: int, *, rngs: nnx.Rngs):
        self.inputs = nnx.Linear(bins, spec.width, rngs=rngs)
        self.blocks = nnx.List([Block(spec.width, dilation, rngs=rngs) for dilation in spec.dilations])

    def __call__(self, x: Spectrum, key: Key[Array, ""] | None = None) -> tuple[Found, Spectrum]:
        x = jnp.asarray(x)
        real, imaginary = jnp.split(x, 2, axis=-1)
        level = 0.5 * jnp.log(jnp.square(real) + jnp.square(imaginary) + FLOOR**2)
        h = self.inputs(level)
        for block in self.blocks:
            h = h + block(h)
        return h, x


class Block(nnx.Module):
    """[batch, frames, width] to the same: layer norm, each channel over time, then all channels of a frame."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.taps = nnx.Param(jax.random.normal(rngs.params(), (TAPS, width)) / TAPS**0.5)
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.dilation = dilation

    def __call__(self, x: Found) -> Found:
        reach = TAPS // 2 * self.dilation
        padded = jnp.pad(self.norm(x), ((0, 0), (reach, reach), (0, 0)))
        frames = x.shape[1]
        taps = self.taps[...]
        seen = [padded[:, i * self.dilation : i * self.dilation + frames] * taps[i, None, None] for i in range(TAPS)]
        return self.linear(jax.nn.gelu(sum(seen[1:], start=seen[0])))


class MaskDecoder(nnx.Module):
    def __init__(self, width: int, bins: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.outputs = nnx.Linear(width, 2 * bins, rngs=rngs)

    def __call__(self, z: tuple[Found, Spectrum], key: Key[Array, ""] | None = None) -> Spectrum:
        found, x = z
        real, imaginary = jnp.split(x, 2, axis=-1)
        level, turn = jnp.split(self.outputs(self.norm(found)), 2, axis=-1)
        weight, angle = jax.nn.sigmoid(level), jnp.pi / 2 * jnp.tanh(turn)
        cosine, sine = weight * jnp.cos(angle), weight * jnp.sin(angle)
        return jnp.concatenate([cosine * real - sine * imaginary, sine * real + cosine * imaginary], axis=-1)
