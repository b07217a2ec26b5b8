"""Encoders, decoders, heads, and the few layers they need."""

from flaxae.nn import bodies, conv, convnet, heads, layers, mixer, mlp, priors, recognizer

__all__ = ["bodies", "conv", "convnet", "heads", "layers", "mixer", "mlp", "priors", "recognizer"]
