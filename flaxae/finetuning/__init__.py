"""Classification with few labels on a trained autoencoder: probes of frozen codes, and fine-tuned classifiers.

    labels = finetuning.draw(dataset.train_labels, 100)                      # −1 for the others
    probe = finetuning.linear_probe(training.apply(Autoencoder.encode, model, x), labels)
    classifier = finetuning.on_probe(model, probe)
    finetuning.fit([classifier], x, finetuning.supervised([labels], classes=10), finetuning.FineTuning())

`Classifier` is the encoder with a linear layer on its code. `fit` trains several of them side by side, such as one for
each draw of labels. Their targets are class probabilities: labels, or what was found from them for all examples.
`distil` propagates the labels, lets a kernel probe vote where that errs less, and trains on the result, which is the
strongest method for few labels of many examples.
"""

from flaxae.finetuning import propagation
from flaxae.finetuning.classifier import (
    Classifier,
    Distilled,
    FineTuning,
    Targets,
    Views,
    depths,
    distil,
    distilled,
    encode,
    fit,
    on_probe,
    predict,
    soft,
    supervised,
)
from flaxae.finetuning.probes import (
    CS,
    FOREST_SHARE,
    Clusters,
    Codes,
    KernelProbe,
    Labels,
    Probabilities,
    Probe,
    cluster,
    draw,
    forest,
    kernel_probe,
    knn_accuracy,
    linear_probe,
    tabular_vote,
    vote,
    whiten,
)

__all__ = [
    "CS",
    "FOREST_SHARE",
    "Classifier",
    "Clusters",
    "Codes",
    "Distilled",
    "FineTuning",
    "KernelProbe",
    "Labels",
    "Probabilities",
    "Probe",
    "Targets",
    "Views",
    "cluster",
    "depths",
    "distil",
    "distilled",
    "draw",
    "encode",
    "fit",
    "forest",
    "kernel_probe",
    "knn_accuracy",
    "linear_probe",
    "on_probe",
    "predict",
    "propagation",
    "soft",
    "supervised",
    "tabular_vote",
    "vote",
    "whiten",
]
