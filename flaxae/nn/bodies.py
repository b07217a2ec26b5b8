"""What a body has to be: the spec of an encoder and of the decoder that mirrors it."""

from typing import Any, Protocol, runtime_checkable

from flax import nnx


@runtime_checkable
class Body(Protocol):
    """The spec of an encoder and a decoder. A fully convolutional body also takes sizes that it was not built for."""

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> Any:
        """A module `(x, key) -> features`, from [batch, *shape] to [batch, *features], or to a tree of such arrays.

        Raises:
            ConfigError: it doesn't take examples of that shape.
        """
        ...

    def decoder(self, code: Any, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> Any:
        """A module `(z, key) -> params`, from [batch, *code] (or a tree of such) to [batch, *shape].

        One that shares weights with the encoder has a method `tie(encoder)`, which is called once both are there.

        Args:
            code: the shape of one example's code (no batch axis), or a tree of shapes.
            shape: the shape of the likelihood's parameters for one example.
        """
        ...
