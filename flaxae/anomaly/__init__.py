"""Anomaly scores of examples, by autoencoders that were trained on normal examples. Higher is stranger.

    detector = anomaly.fit(normal, kind="tabular")        # trains, and holds out a fifth to compare with
    detector.score(new), detector.p_values(new)           # [n] each
    detector.contributions(new)                           # which values made it strange

A detector turns examples into `Views`, runs them through its autoencoder, which gives a `Passed`, and computes one of
`SCORES` from that. The scores of examples held out from the training turn any score into p-values (`conformal`).
`findings` names the strange examples and what made them so.
"""

from flaxae.anomaly import conformal, findings
from flaxae.anomaly.detector import (
    FOLDS,
    HELD_OUT,
    MAX_REFERENCES,
    NEIGHBOURS,
    Detector,
    default_config,
    fit,
    fit_folds,
    hold_out,
    load,
    split,
    training_settings,
)
from flaxae.anomaly.scores import SCORES, Score, check_neighbours, check_score, nearest
from flaxae.anomaly.views import Passed, Views

__all__ = [
    "FOLDS",
    "HELD_OUT",
    "MAX_REFERENCES",
    "NEIGHBOURS",
    "SCORES",
    "Detector",
    "Passed",
    "Score",
    "Views",
    "check_neighbours",
    "check_score",
    "conformal",
    "default_config",
    "findings",
    "fit",
    "fit_folds",
    "hold_out",
    "load",
    "nearest",
    "split",
    "training_settings",
]
