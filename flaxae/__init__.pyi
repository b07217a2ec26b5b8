# The public names, each imported when it is first used; type checkers and editors read them here.

from . import (
    anomaly as anomaly,
)
from . import (
    atomic as atomic,
)
from . import (
    augmentation as augmentation,
)
from . import (
    autoencoder as autoencoder,
)
from . import (
    baselines as baselines,
)
from . import (
    batches as batches,
)
from . import (
    compilation as compilation,
)
from . import (
    conformal as conformal,
)
from . import (
    corruptions as corruptions,
)
from . import (
    data as data,
)
from . import (
    denoising as denoising,
)
from . import (
    density as density,
)
from . import (
    distributed as distributed,
)
from . import (
    errors as errors,
)
from . import (
    estimators as estimators,
)
from . import (
    findings as findings,
)
from . import (
    finetuning as finetuning,
)
from . import (
    likelihoods as likelihoods,
)
from . import (
    metrics as metrics,
)
from . import (
    nn as nn,
)
from . import (
    objectives as objectives,
)
from . import (
    presets as presets,
)
from . import (
    processes as processes,
)
from . import (
    propagation as propagation,
)
from . import (
    runs as runs,
)
from . import (
    specs as specs,
)
from . import (
    stacked as stacked,
)
from . import (
    trained as trained,
)
from . import (
    training as training,
)
from .autoencoder import Autoencoder as Autoencoder
from .autoencoder import Config as Config
from .autoencoder import build as build
from .batches import Batch as Batch
from .denoising import denoise as denoise
from .estimators import (
    AutoencoderClassifier as AutoencoderClassifier,
)
from .estimators import (
    AutoencoderDetector as AutoencoderDetector,
)
from .estimators import (
    AutoencoderTransformer as AutoencoderTransformer,
)
from .estimators import (
    DenoisingAutoencoder as DenoisingAutoencoder,
)
from .nn.convnet import ConvNet as ConvNet
from .nn.convnet import FullyConvolutional as FullyConvolutional
from .nn.mixer import Mixer as Mixer
from .nn.mlp import MLP as MLP
from .runs import loggers as loggers
from .runs import plots as plots
from .runs import report as report
from .specs import register as register
from .trained import (
    Trained as Trained,
)
from .trained import (
    TrainedClassifier as TrainedClassifier,
)
from .trained import (
    TrainedDetector as TrainedDetector,
)
from .trained import (
    load as load,
)
from .trained import (
    save as save,
)
from .training import (
    History as History,
)
from .training import (
    apply as apply,
)
from .training import (
    checkpoints as checkpoints,
)
from .training import (
    feed as feed,
)
from .training import (
    fit as fit,
)
from .training import (
    fit_population as fit_population,
)
from .training import (
    population as population,
)
from .training import (
    precision as precision,
)
from .training import (
    progress as progress,
)

__version__: str
__all__: list[str]
