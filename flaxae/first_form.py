"""Configs as version 0.1 wrote them: a flat list of settings, with names for parts. They are read, never written."""

from collections.abc import Callable, Mapping
from typing import Any

from flaxae import corruptions, errors, objectives, specs
from flaxae.nn import heads

CORRUPTIONS: dict[str, Callable[[float, Any], Any]] = {
    "none": lambda noise, clip: None,
    "gaussian": lambda noise, clip: corruptions.GaussianNoise(noise, clip),
    "masking": lambda noise, clip: corruptions.Masking(noise),
    "salt_and_pepper": lambda noise, clip: corruptions.SaltAndPepper(noise),
    "patches": lambda noise, clip: corruptions.Patches(level=noise),
    "transform": lambda noise, clip: corruptions.Transform(level=noise),
}
HEADS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "deterministic": lambda v: heads.Deterministic(v["latent"]),
    "relu": lambda v: heads.Sparse(v["latent"], "relu"),
    "sigmoid": lambda v: heads.Sparse(v["latent"], "sigmoid"),
    "top_k": lambda v: heads.TopK(v["latent"], v["active"]),
    "gaussian": lambda v: heads.Variational(v["latent"]),
    "vector_quantized": lambda v: heads.VectorQuantizer(v["latent"], v["codebook"], v["width"]),
}
OBJECTIVES: dict[str, tuple[Callable[[Mapping[str, Any]], Any], tuple[str, ...]]] = {  # and its hyper-parameters' names
    "likelihood": (lambda v: objectives.negative_log_likelihood, ()),
    "profile_likelihood": (lambda v: objectives.profile_likelihood, ()),
    "masked": (lambda v: objectives.masked, ()),
    "layerwise": (lambda v: objectives.Layerwise(v["layerwise"]), ("layerwise",)),
    "l1_sparse": (lambda v: objectives.L1(v["sparsity"]), ("sparsity",)),
    "rate_sparse": (lambda v: objectives.ActivityRate(v["sparsity"], v["rate"]), ("sparsity", "rate")),
    "contractive": (lambda v: objectives.Contractive(v["contraction"]), ("contraction",)),
    "elbo": (lambda v: objectives.ELBO(v["beta"], v["free_bits"]), ("beta", "free_bits")),
    "importance_weighted": (lambda v: objectives.ImportanceWeighted(v["samples"]), ()),
    "vector_quantized": (lambda v: objectives.VectorQuantization(v["commitment"]), ("commitment",)),
}
DEFAULTS = {
    "latent": 32, "head": "deterministic", "corruption": "none", "noise": 0.0, "clip": None, "objective": "likelihood",
    "binarise": False, "beta": 1.0, "free_bits": 0.0, "samples": 5, "sparsity": 0.0, "rate": 0.05, "active": 8,
    "layerwise": 0.0, "contraction": 0.0, "commitment": 0.25, "codebook": 128, "width": 4,
}  # fmt: skip


def is_of(values: Mapping[str, Any]) -> bool:
    """Whether a config's JSON values are in the form of version 0.1."""
    return isinstance(values.get("head"), str)


def parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The five parts of a config of version 0.1.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    given = {**DEFAULTS, **values}
    for what, table in (("head", HEADS), ("objective", OBJECTIVES), ("corruption", CORRUPTIONS)):
        if given[what] not in table:
            raise errors.ConfigError(errors.unknown(what, str(given[what]), table))
    objective = OBJECTIVES[given["objective"]][0](given)
    clip = given["clip"] and tuple(given["clip"])
    return {
        **{name: specs.from_json(given[name], name) for name in ("body", "likelihood") if name in given},
        "head": HEADS[given["head"]](given),
        "objective": objectives.Binarised(objective) if given["binarise"] else objective,
        "corruption": CORRUPTIONS[given["corruption"]](given["noise"], clip),
    }


def hyper(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the hyper-parameters that a model of version 0.1 was saved with."""
    return ("noise", *OBJECTIVES[values["objective"]][1])
