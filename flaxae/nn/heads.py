"""Heads: from an encoder's features to the code.

A head is any module called as `head(features, key) -> Latent`. Without a key it is deterministic: what leaves the
package as a code is never a sample.
"""

from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Key


class Latent(NamedTuple):
    """What a head returns. `z` goes to the decoder."""

    z: Float[Array, " batch latent"]


class Deterministic(nnx.Module):
    """z = W h + b, with no activation: a linear bottleneck loses least (Hinton & Salakhutdinov 2006)."""

    def __init__(self, features: int, latent: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features, latent, rngs=rngs)

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=self.linear(features))
