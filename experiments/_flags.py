"""The flags of every experiment. Nothing heavy is imported here, so that `--help` and mistyped flags answer at once."""

import dataclasses
import math
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

from flaxae.data import formats
from flaxae.errors import ConfigError, unknown

MAX_PIXELS = 89_478_485  # of one image, as `data.images` has it
FORMATS = formats.listed("array", "signal", "table")  # all file formats but those of single images
DENOISERS = ("mixer", "convolutional", "denoising")
LOGGERS = ("tensorboard", "mlflow", "wandb", "trackio")  # as `runs.loggers` has them
CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper", "poisson_gaussian")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags that every experiment shares."""

    used_with: ClassVar[tuple[str, ...]] = ("from", "input", "output")  # the flags that use a trained model

    data: Annotated[
        str,
        tyro.conf.arg(
            help=f"What to train on: `mnist`, `tfds:NAME`, or a path: of a file ({FORMATS}), or of a folder, zip or "
            "tar of images, or a folder of IDX files."
        ),
    ] = "mnist"
    label: str | None = None
    """The column of a table, or the feature of a TFDS set, that holds the labels. It is not trained on."""
    time: str | None = None
    """The column of a table that tells the time, carried into the results and not trained on; by default found."""
    id: tuple[str, ...] = ()
    """Columns of a table that name its rows, carried into the results and not trained on; by default found."""
    drop: tuple[str, ...] = ()
    """Columns of a table to leave out."""
    keep: tuple[str, ...] = ()
    """Columns of a table to train on even if they look like clocks, counters or names of rows."""
    window: int | Literal["auto"] | None = None
    """Take the data for a signal (the rows of a table for moments), and cut it into windows of so many moments, or for
    auto of its period. A column of times is found, and gaps are cut at."""
    stride: int | None = None
    """A window is scored every so many moments, by default a sixteenth of it; training takes windows from all."""
    size: int | None = None
    """Bring images to so many pixels a side: scaled to cover it, and the middle cut out."""
    max_pixels: int = MAX_PIXELS
    """That one image may have: a small file may claim any size."""
    model: str | None
    """The preset to train."""
    epochs: int | None = None
    """Passes over the training data; by default enough for a large data set, and more for a small one."""
    seed: int = 0
    """Seed of the weights, the shuffles, the noise and the validation part: the same seed gives the same run."""
    name: str | None = None
    """The run's folder, runs/EXPERIMENT/NAME; by default the next free number."""
    resume: bool = False
    """Go on with the interrupted run of that name (by default the newest one)."""
    from_: Annotated[pathlib.Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Use the trained model of this run folder, on --input, instead of training one."""
    input: Annotated[
        pathlib.Path | None,
        tyro.conf.arg(
            help=f"New data for the model given by --from: an image, a folder, zip or tar of images, {FORMATS}."
        ),
    ] = None
    output: pathlib.Path | None = None
    """Where to write the model's result for --input, in the same format."""
    mesh: str | None = None
    """Devices that share each batch, such as `data=4`; by default one, or with several processes (Slurm, mpirun) all.
    With --sweep, `population=2,data=4` also trains models side by side."""
    logger: str | None = None
    """Where else to write metrics than to metrics.jsonl: tensorboard (in the run's folder), mlflow, wandb or trackio;
    each needs the extra of its name."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts at once."""

    @property
    def applies(self) -> bool:
        """Whether to call the experiment's `apply`, which uses a trained model, instead of its `train`."""
        return self.from_ is not None

    def __post_init__(self) -> None:
        for flag in ("size", "max_pixels"):
            if (value := getattr(self, flag)) is not None and value < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it has to be at least 1.")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs is {self.epochs}; it has to be at least 1.")
        if self.logger is not None:
            check_name("logger", self.logger, LOGGERS)
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
    """Examples per step."""
    learning_rate: float = 3e-3
    """The peak learning rate, after a warm-up and before a cosine decay."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam or muon. With muon, networks need fewer epochs, each of which takes longer."""
    validation: float = 0.05
    """Fraction of the training data to validate on, which chooses the best epoch."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """Precision of the autoencoder's training: bf16 computes in bfloat16 with weights in float32, auto does so where it
    is faster: for wide fully connected networks, on accelerators and on CPUs with instructions for it, and for most
    networks on CPUs with AMX."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepFlags(PresetFlags):
    """Flags of an experiment whose settings can be swept."""

    sweep: tuple[str, ...] = ()
    """Settings to vary: lr, and those that the model has, such as noise or beta. `lr=1e-3,1e-2 noise=0.1,0.3` trains
    all four combinations and keeps the best model."""
    seeds: int = 1
    """How many models to train for each combination of a sweep, from different initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ConfigError(f"--seeds is {self.seeds}; it has to be at least 1.")
        if self.seeds > 1 and not self.sweep:
            raise ConfigError("--seeds goes with a --sweep such as lr=1e-4,1e-3,1e-2.")
        if self.sweep and self.model in ("map", "parametric_map"):
            raise ConfigError(f"--model {self.model} can't be swept; take --model vanilla, or another.")
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
    """Train on this class only, as the normal one. By default all is trained on; labels only evaluate, and the most
    frequent class counts as normal."""
    score: str | None = None
    """How strange is measured: by default ensemble for tables, else combined, or neighbours under contamination; a
    wrong name lists the ways."""
    false_alarms: float | None = None
    """The fraction of normal examples that may be flagged; by default 0.01, or with --from that of the run. For windows
    of a signal, this holds only if the future resembles the held-out time."""
    threshold: Literal["conformal", "percentile", "f1"] | None = None
    """conformal, the default, guarantees that fraction; percentile is the plain quantile of the held-out scores; f1 is
    the best F1 on held-out labels."""
    fdr: float | None = None
    """Flag so that, in expectation, at most this fraction of the flagged examples is normal (Benjamini-Hochberg)."""
    contamination: float | None = None
    """The fraction of the training data that may be strange: as much of each batch, the worst-fitting, is left out, and
    of the scores that the threshold is set by. By default 0 of images and signals; of tables it is estimated."""
    members: int = 1
    """How many autoencoders to train together; their scores are averaged."""
    held_out: float = 0.2
    """The fraction of the normal training examples to keep out of the training, for setting the threshold."""
    maps: pathlib.Path | None = None
    """A folder for a heat map of each image, of the test part or of --input: grey PNGs, half grey being what normal
    images hardly reach."""

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
class Compress(Flags):
    """Flags of the compression experiment."""

    model: str | None = None
    """There is one network for each kind of codec: leave it out."""
    lossless: bool = False
    """Train a codec whose images come back exactly, which is the default."""
    quality: int | None = None
    """1, the smallest files, to 100, the best images: train a lossy codec, which has all of them, and this by default.
    With --from, the quality to compress at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_mesh(self)
        if self.model is not None:
            raise ConfigError("--model: there is one network for each kind of codec; leave it out.")
        if self.lossless and self.quality is not None:
            raise ConfigError("--lossless and --quality are two kinds of codec; give one of them.")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality is {self.quality}; it has to be from 1, the smallest files, to 100.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise(SweepFlags):
    """Flags of the denoising experiment."""

    model: str | None = None
    """The preset to train: mixer, convolutional or denoising; by default mixer for images, denoising for the rest.
    `package.module:preset` is one of your own, with its own corruption. Photographs (images that are large, or differ
    in size) have a U-Net."""
    corruption: str = "gaussian"
    """What the model learns to undo: gaussian, masking, salt_and_pepper or poisson_gaussian (a sensor's noise)."""
    noise: float | None = None
    """Its level: the standard deviation (of data scaled to [0, 1], or standardised), or the fraction of values hit. By
    default 0.5, and for photographs any from 5 to 55 of 255: one model for all."""
    target: str | None = None
    """Photographs, by the same names as those of --data, which are what should be made of these: clean ones, or others
    of the same things with other noise."""
    noisy: bool = False
    """The photographs of --data are noisy themselves and there are no clean ones. --noise is then how noisy they are;
    by default that is estimated."""
    test: str | None = None
    """Clean photographs to test on; by default a fifth of --data is kept for that."""
    crop: int = 128
    """Of photographs, train on pieces of so many pixels a side. Of small ones all is near an edge."""
    clip: bool = True
    """Clip noisy images to [0, 1]; photographs never are."""
    noise_data: pathlib.Path | None = None
    """Of sound: a file or folder of noise to mix into the clips, instead of white and coloured noise and babble."""
    batch_size: int | None = None
    """Examples per step; by default 64, and 8 pieces of photographs."""
    learning_rate: float | None = None
    """The peak, after a warm-up and before a cosine decay; by default 3e-3, and 1e-3 for photographs."""
    optimizer: Literal["adam", "muon"] | None = None
    """adam or muon, with which networks need fewer epochs, each of which takes longer; by default muon for photographs,
    and adam for the rest."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    ema: float | None = None
    """Use a moving average of the weights with this decay, such as 0.999; for photographs by default 0.995."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and ":" not in self.model:
            check_name("model", self.model, DENOISERS)
        check_name("corruption", self.corruption, CORRUPTIONS)
        if self.noise is not None and not self.noise > 0:
            raise ConfigError(f"--noise is {self.noise}; it has to be above 0.")
        if self.crop < 8:
            raise ConfigError(f"--crop is {self.crop}; it has to be at least 8.")
        if self.target is not None and (self.noisy or self.noise is not None):
            raise ConfigError("--target says what the noise is: leave out --noise and --noisy.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed(Flags):
    """Flags of the sentence experiment."""

    data: str = ""
    """The sentences: a text file with one a line, or a table (.csv, .parquet, …) with a column of them."""
    model: Annotated[None, tyro.conf.Suppress] = None
    column: tuple[str, ...] = ()
    """The columns of the table that hold sentences; by default the one with the longest texts."""
    encoder: str | None = None
    """A pre-trained model whose vectors are made shorter, instead of learning from the sentences alone: minilm (which
    the extra of that name has), or a folder that sentence-transformers can load."""
    latent: int | None = None
    """How many numbers a sentence's vector has; by default 128, with --encoder 64."""
    batch_size: int | None = None
    """Sentences per step; by default 256, with --encoder 512."""
    learning_rate: float | None = None
    """The encoder's peak learning rate, after a warm-up and before a cosine decay; by default 0.0001, with --encoder
    0.003."""
    query: tuple[str, ...] = ()
    """Sentences to find the most similar ones to, after training or with --from."""
    count: int = 5
    """How many to find for each query."""
    pairs: str | None = None
    """A table with two sentences and their similarity a row, such as a part of the STS benchmark, to measure on: the
    rank correlation, beside tf-idf, LSA and mean word vectors."""

    def __post_init__(self) -> None:
        if self.input is not None or self.output is not None or not self.query:
            super().__post_init__()
        refuse_mesh(self)
        refuse_others(self, "label", "time", "id", "drop", "keep", "window", "stride", "size")
        if self.from_ is None and not self.data:
            raise ConfigError("Say which sentences to learn from: --data sentences.txt, one a line, or a table.")
        for flag in ("latent", "batch_size", "count"):
            if (value := getattr(self, flag)) is not None and value < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it has to be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(PresetFlags):
    """Flags of the fine-tuning experiment."""

    model: str | None = None
    """The preset to pre-train; by default `transformed` for images and `denoising` for the rest."""
    labels: int = 100
    """How many labels the strongest recipe gets, the same number of each class."""
    draws: int = 5
    """How many times to draw the labels and repeat the comparison."""
    batch_size: int = 128
    """Examples per step of pre-training."""
    learning_rate: float = 4e-3
    """The peak learning rate of pre-training, after a warm-up and before a cosine decay."""

    @property
    def applies(self) -> bool:
        return self.input is not None  # --from alone gives the encoder to start from

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

    model: str | None = None
    """The preset to train; by default mixer for images, vanilla for large ones, and variational for tables. A wrong
    name lists them; `package.module:preset` is one of your own."""
    latent: int | None = None
    """Size of the code; by default 192 for --model mixer, 128 for vanilla, and the preset's for others."""
    batch_size: int = 128
    """Examples per step."""
    label: str | None = None
    """The column of a table, or the feature of a TFDS set, that holds the labels: each class has components of its own
    in the prior. With --from, the class to draw samples of."""
    binarise: bool = True
    """For a variational model of images, train and score on binarised pixels, drawn with their grey levels as
    probabilities."""
    draws: int = 500
    """Importance samples for the likelihood of each example."""
    scored: int = 1000
    """How many test examples to estimate the likelihood of."""
    components: int | None = None
    """Components of the mixture fitted to the codes, which is sampled; by default one for every 15 images or 100 other
    examples, and 4,000 at most."""
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
            if (value := getattr(self, flag)) is not None and value < 1:
                raise ConfigError(f"--{flag} is {value}; it has to be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommend(Flags):
    """Flags of the recommendation experiment."""

    data: str = ""
    """A table of who chose what: user, item and, if there are any, rating and time."""
    model: Literal["linear", "variational"] = "linear"
    """Vectors of items that are added up, which do well on few users; or a variational autoencoder (Mult-VAE)."""
    user: str | None = None
    """The column of users; by default the one of that name, or the first."""
    item: str | None = None
    """The column of items; by default the one of that name, or the second."""
    rating: str | None = None
    """The column of ratings, for --least; by default the one of that name, or the third."""
    least: float | None = None
    """Count only ratings from that on; by default every row is a choice, whatever its rating."""
    latent: int | None = None
    """How many numbers a user's vector has; by default 128, of the variational model 256."""
    hidden: tuple[int, ...] = ()
    """Sizes of the variational encoder's hidden layers; by default encoder and decoder are linear."""
    beta: float | None = None
    """The weight of the variational model's KL after its warm-up; by default 0.2."""
    rounds: int | None = None
    """Rounds that the variational model's training is divided into; from 2 on, the prior is RecVAE's; by default 1."""
    batch_size: int = 100
    """Users per step."""
    learning_rate: float | None = None
    """The peak learning rate, after a warm-up and before a cosine decay; by default 0.03, or variational 0.001."""
    count: int = 10
    """How many items to recommend to each user, and how many similar ones to list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_mesh(self)
        refuse_others(self, "label", "time", "id", "drop", "keep", "window", "stride", "size")
        if self.from_ is None and not self.data:
            raise ConfigError("Say who chose what: --data ratings.csv, a table with the columns user and item.")
        for flag in ("latent", "rounds", "batch_size", "count"):
            if (value := getattr(self, flag)) is not None and value < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it has to be at least 1.")
        if self.model == "linear" and (self.hidden or self.beta is not None or self.rounds is not None):
            raise ConfigError("--hidden, --beta and --rounds are for the variational model: --model variational.")


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

    model: str = "map"
    """The preset to train: `map` keeps neighbours together, with a decoder back, and remembers the examples;
    `parametric_map` has an encoder that learns to; another, such as vanilla, is a map for reconstruction alone. A wrong
    name lists them."""
    batch_size: int = 512
    """Examples per step."""
    latent: int = 2
    """Dimensions of the map; with more than 3, the codes are scored and written but not drawn."""


FLAGS: dict[str, type[Flags]] = {
    "anomaly": Anomaly,
    "compress": Compress,
    "denoise": Denoise,
    "embed": Embed,
    "finetune": Finetune,
    "generate": Generate,
    "recommend": Recommend,
    "reconstruct": Reconstruct,
    "reduce": Reduce,
}


def check_name(flag: str, given: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError, which suggests the nearest name, unless `given` is one of the `known` names."""
    if given not in known:
        raise ConfigError(unknown(f"--{flag}", given, known))


def refuse_mesh(config: Flags) -> None:
    """Raise ConfigError if --mesh is given. For experiments that train several small models on one device."""
    if config.mesh is not None:
        raise ConfigError("--mesh is for denoise, reconstruct, generate and reduce; this experiment uses one device.")


def refuse_others(config: Flags, *names: str) -> None:
    """Raise ConfigError if one of these flags is given, which the experiment has no use for."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    given = [name for name in names if getattr(config, name) != defaults[name]]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no meaning in this experiment; leave it out.")


def axes(config: SweepFlags) -> dict[str, list[int | float]]:
    """The settings in --sweep and their values in ascending order; sizes of the code are whole numbers.

    Raises:
        ConfigError: --sweep is not of the form lr=1e-4,1e-3, or has a setting twice.
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
