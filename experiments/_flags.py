"""The flags of every experiment. Nothing heavy is imported here: `--help` and a mistyped flag answer at once."""

import dataclasses
import math
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

from flaxae.data import formats
from flaxae.errors import ConfigError, unknown

FORMATS = formats.listed("array", "signal", "table")  # of files whose examples are no images
DENOISERS = ("mixer", "convolutional", "denoising")
CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags that every experiment shares."""

    used_with: ClassVar[tuple[str, ...]] = ("from", "input", "output")  # the flags that use a trained model

    data: Annotated[
        str,
        tyro.conf.arg(
            help=f"What to train on: `mnist`, `tfds:NAME`, or a path: of a file ({FORMATS}), or of a folder of images "
            "or IDX files."
        ),
    ] = "mnist"
    label: str | None = None
    """The column of a table, or feature of a TFDS set, that is a label and not trained on."""
    time: str | None = None
    """The column of a table that tells the time, carried into the results and not trained on; by default found."""
    id: tuple[str, ...] = ()
    """Columns of a table that name its rows, carried into the results and not trained on; by default found."""
    drop: tuple[str, ...] = ()
    """Columns of a table to leave out."""
    keep: tuple[str, ...] = ()
    """Columns of a table to train on even if they look like clocks, counters or names of rows."""
    window: int | None = None
    """Take the data for a signal (the rows of a table for moments), and cut it into windows of so many moments."""
    stride: int | None = None
    """A window begins every so many moments; by default every half window."""
    model: str | None
    """The preset to train."""
    epochs: int | None = None
    """Passes over the training data; by default what a large set needs, and more of a small one."""
    seed: int = 0
    """Of the weights, the shuffles, the noise and the held-out part: the same seed gives the same run."""
    name: str | None = None
    """The run's folder, runs/EXPERIMENT/NAME; by default the next free number."""
    resume: bool = False
    """Go on with the interrupted run of that name (by default the newest one)."""
    from_: Annotated[pathlib.Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Use the trained model of this run folder, on --input, instead of training one."""
    input: Annotated[
        pathlib.Path | None,
        tyro.conf.arg(help=f"New data for the model given by --from: an image, a folder of images, {FORMATS}."),
    ] = None
    output: pathlib.Path | None = None
    """Where to write what the model makes of --input, in the same format."""
    mesh: str | None = None
    """Devices to share each batch, such as `data=4`; by default one, or all of several processes (Slurm, mpirun).
    With --sweep, `population=2,data=4` trains models side by side as well."""
    logger: str | None = None
    """Where metrics go besides metrics.jsonl: `tensorboard`, into the run's folder (needs the extra of that name)."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts at once."""

    @property
    def applies(self) -> bool:
        """Whether the experiment's `apply` is asked for, which uses a trained model, and not its `train`."""
        return self.from_ is not None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs is {self.epochs}; it has to be at least 1.")
        if self.logger is not None:
            check_name("logger", self.logger, ("tensorboard",))
        together = {"from": "RUN", "input": "NEW", "output": "RESULT"}
        given = [flag for flag in together if getattr(self, flag.replace("from", "from_")) is not None]
        if given and given != list(self.used_with):
            raise ConfigError(
                f"{' and '.join(f'--{flag}' for flag in given)} can't be used so: "
                f"{' '.join(f'--{flag} {together[flag]}' for flag in self.used_with)} go together."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetFlags(Flags):
    """Flags of an experiment that trains any preset."""

    model: str = "vanilla"
    """The preset to train; a wrong name lists them. `package.module:preset` is one of your own."""
    latent: int | None = None
    """Size of the code; by default the preset's."""
    batch_size: int = 256
    """Examples a step."""
    learning_rate: float = 3e-3
    """The peak, after a warm-up and before a cosine decay."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon, by which fully connected models need fewer epochs, each of which takes longer."""
    validation: float = 0.05
    """Fraction of the training data held out, to choose the best epoch by."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the autoencoder's training: bf16 computes in bfloat16 with weights in float32. It is for accelerators; on CPU
    it is slower, and only for trying."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepFlags(PresetFlags):
    """Flags of an experiment whose settings can be swept."""

    sweep: tuple[str, ...] = ()
    """Settings to vary: lr, and noise, beta, … of a model that has it. `lr=1e-3,1e-2 noise=0.1,0.3` trains all four
    combinations and keeps the best model."""
    seeds: int = 1
    """How many models are trained for each of a sweep's values, from different weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ConfigError(f"--seeds is {self.seeds}; it has to be at least 1.")
        if self.seeds > 1 and not self.sweep:
            raise ConfigError("--seeds goes with a --sweep such as lr=1e-4,1e-3,1e-2.")
        if self.sweep and "latent" not in axes(self) and self.model == "stacked":
            raise ConfigError("--model stacked is for one model; those of a --sweep train side by side. Leave it out.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anomaly(Flags):
    """Flags of the anomaly experiment."""

    model: str | None = None
    """The preset to train, such as variational for --score likelihood; by default one chosen for the kind of data."""
    latent: int | None = None
    """Size of the code; by default the preset's."""
    normal: str | None = None
    """The normal class, which alone is trained on; by default labels only evaluate, the most frequent being normal."""
    score: str | None = None
    """How strange is measured: by default ensemble for tables, else combined, or neighbours under contamination; a
    wrong name lists the ways."""
    false_alarms: float | None = None
    """The rate of normal examples that may be flagged; by default 0.01, or with --from the run's. Of a signal's windows
    it holds as far as the time to come is like that held out."""
    threshold: Literal["conformal", "percentile", "f1"] | None = None
    """Conformal, the default, promises that rate; percentile is the plain quantile of held-out scores; f1 is the best
    on held-out labels."""
    fdr: float | None = None
    """Flag so that of the flagged at most this fraction is normal, in expectation (Benjamini-Hochberg)."""
    contamination: float | None = None
    """The fraction of the training data that may be strange: as much of each batch, the worst-fitting, is left out, and
    of the scores that the threshold is set by. By default 0 of images and signals; of tables it is estimated."""
    members: int = 1
    """Autoencoders trained together, whose scores are averaged."""
    held_out: float = 0.2
    """The fraction of the normal training examples that is kept from training, to set the threshold by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_mesh(self)
        for flag in ("false_alarms", "fdr", "held_out"):
            value = getattr(self, flag)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it has to be above 0 and below 1.")
        if self.fdr is not None and (self.threshold or self.false_alarms):
            raise ConfigError("--fdr is another way to flag than --threshold and --false-alarms; give one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise(SweepFlags):
    """Flags of the denoising experiment."""

    model: str | None = None
    """The preset to train: mixer, convolutional or denoising; by default mixer for images, denoising for the rest.
    `package.module:preset` is one of your own, with its own corruption."""
    corruption: str = "gaussian"
    """What the model learns to undo: gaussian, masking or salt_and_pepper."""
    noise: float = 0.5
    """Its level: the standard deviation (of data scaled to [0, 1], or standardised), or the fraction of values hit."""
    clip: bool = True
    """Clip noisy images to [0, 1]."""
    batch_size: int = 64
    """Examples a step."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then what is used; such as 0.999."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and ":" not in self.model:
            check_name("model", self.model, DENOISERS)
        check_name("corruption", self.corruption, CORRUPTIONS)
        if not self.noise > 0:
            raise ConfigError(f"--noise is {self.noise}; it has to be above 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(PresetFlags):
    """Flags of the fine-tuning experiment."""

    model: str | None = None
    """The preset to pre-train; by default `transformed` for images and `denoising` for the rest."""
    labels: int = 100
    """How many labels the strongest recipe gets, evenly of all classes."""
    draws: int = 5
    """How often the labels are drawn."""
    batch_size: int = 128
    """Examples a step of pre-training."""
    learning_rate: float = 4e-3
    """Of pre-training: the peak, after a warm-up and before a cosine decay."""

    @property
    def applies(self) -> bool:
        return self.input is not None  # --from alone is what to start from

    def __post_init__(self) -> None:
        if self.input is not None or self.output is not None:
            super().__post_init__()
        refuse_mesh(self)
        for flag, value in (("labels", self.labels), ("draws", self.draws)):
            if value < 1:
                raise ConfigError(f"--{flag} is {value}; it has to be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(SweepFlags):
    """Flags of the generation experiment."""

    used_with: ClassVar[tuple[str, ...]] = ("from", "output")

    model: str = "vae"
    """The preset to train; a wrong name lists them."""
    binarise: bool = True
    """Train and score a variational model of images on pixels drawn black or white, by their grey levels."""
    draws: int = 500
    """Importance samples for the likelihood of an example."""
    scored: int = 1000
    """Test examples to estimate the likelihood of."""
    components: int = 32
    """Of the Gaussian mixture, for a code without a prior."""
    count: Annotated[
        int,
        tyro.conf.arg(
            help=f"With --from, how many samples to draw; --output is {formats.listed('array', 'table')}, or for "
            "images a folder."
        ),
    ] = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("draws", "scored", "components", "count"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag} is {getattr(self, flag)}; it has to be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(SweepFlags):
    """Flags of the reconstruction experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "latent" in axes(self) and (len(self.sweep) > 1 or self.seeds > 1):
            raise ConfigError(
                "A --sweep of latent goes alone: sizes of the code are trained one by one, one seed each."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduce(SweepFlags):
    """Flags of the dimension-reduction experiment."""

    latent: int = 2
    """Dimensions of the map; beyond 3 the codes are scored and written, and not drawn."""


FLAGS: dict[str, type[Flags]] = {
    "anomaly": Anomaly,
    "denoise": Denoise,
    "finetune": Finetune,
    "generate": Generate,
    "reconstruct": Reconstruct,
    "reduce": Reduce,
}


def check_name(flag: str, given: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError, with the nearest name, unless `given` is one of those known."""
    if given not in known:
        raise ConfigError(unknown(f"--{flag}", given, known))


def refuse_mesh(config: Flags) -> None:
    """Raise ConfigError if --mesh is given, to an experiment that trains several small models on one device."""
    if config.mesh is not None:
        raise ConfigError("--mesh is for denoise, reconstruct, generate and reduce; this experiment uses one device.")


def axes(config: SweepFlags) -> dict[str, list[int | float]]:
    """The names and ascending values of --sweep; sizes of the code are whole numbers.

    Raises:
        ConfigError: it is not of the form lr=1e-4,1e-3, or has a setting twice.
    """
    found = {}
    for text in config.sweep:
        name, _, values = text.partition("=")
        try:
            kind = int if name == "latent" else float
            numbers = sorted({kind(value) for value in values.split(",")})
            least = 1 if name == "latent" else 0
            if not name or name in found or not all(least <= number < math.inf for number in numbers):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--sweep has {text!r}; expected a setting and its values, each setting once, such as "
                "lr=1e-4,1e-3,1e-2, noise=0.1,0.3, or sizes of the code, latent=2,8,32,128."
            ) from None
        found[name] = numbers
    return found
