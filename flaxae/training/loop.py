"""The one training loop: blocks of steps, epochs of blocks, and what happens between them.

`train` drives any compiled program: one model, a population side by side, or classifiers. After each block it checks
the clock, Ctrl-C and the other processes. After each epoch it validates, keeps the best weights, calls the callback,
and stops if patience has run out. Every few seconds it saves everything that is needed to resume to the same bits.
"""

import contextlib
import math
import os
import pathlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from flaxae import errors
from flaxae.parallel import distributed, processes
from flaxae.training import checkpoints, feed, progress
from flaxae.training.examples import fingerprint

BLOCK_SECONDS = 0.3  # between checks of the clock and of Ctrl-C, or
BLOCK_STEPS = 8  # if they take no longer than
MOST_SECONDS = 2.0
SAVE_SECONDS = 10.0  # between checkpoints
RISE = 10.0  # times the first epoch's loss that a later one may be above it, unless the training is lost
FIGURES_AFTER = 5.0  # seconds of training: in less, it isn't worth compiling what measures them

Metrics = dict[str, float | str]
OnEpoch = Callable[[Metrics], bool | None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP came. `snapshot` holds the training so far, also saved if there is a folder."""

    def __init__(self, snapshot: Any):
        super().__init__()
        self.snapshot = snapshot


class Work(NamedTuple):
    """What the loop drives. States and weights are trees of arrays that only these functions look into."""

    block: Callable[..., Any]  # (state, *window, start, stop) -> the next state; donates the one it is given
    sums: Callable[[Any], tuple[Any, Any]]  # state -> whether all is finite, sums of the metrics over the epoch so far
    begin: Callable[[Any], Any]  # state -> the same state with its sums set to 0
    weights: Callable[[Any], Any]  # state -> copies of the weights to validate and keep
    validate: Callable[[Any], Mapping[str, Any]] | None  # weights -> scores on validation examples, lower is better
    chosen_by: str  # the name of the score by which the best epoch is chosen
    source: feed.Source
    samples: int  # per step, over all members
    figures: Callable[[Any], str] | None = None  # weights -> figures that people know, for the progress line


class Snapshot(NamedTuple):
    """The state of a run at one step: all that is saved to resume it. Future epochs are NaN in `history`."""

    state: Any
    best: Any
    history: dict[str, Float[np.ndarray, " epochs *members"]]
    settings: dict[str, Any]


def start(work: Work, state: Any, epochs: int, settings: dict[str, Any]) -> Snapshot:
    """The snapshot of a run before its first step."""
    ok, sums = work.sums(state)
    names = [*sums, "seconds"]
    best = work.weights(state)
    if work.validate is not None:
        names += jax.eval_shape(work.validate, best)
    history = {name: np.full((epochs, *np.shape(ok)), np.nan) for name in names}
    return Snapshot(state, best, history, settings)


def train(
    work: Work,
    run: Snapshot,
    *,
    patience: int | None = None,
    keep: str = "best",
    mesh: Mesh | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data: Any = None,
    block: int = 1,
    show: bool = False,
    part: tuple[int, int] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Snapshot:
    """Train to the last epoch, or until every member has stopped. The snapshot's `best` are the weights to keep.

    With several members, the arrays of the history have an axis of members. A member that diverges, or whose patience
    has run out, keeps its weights while the others go on.

    Args:
        patience: how many epochs without a better score a member may have before it stops.
        keep: "best", the weights of the epoch with the lowest score (without validation, the last epoch), or "last".
        data: the training data as they were given; a run is only resumed with the same.
        block: steps of the first block. Later blocks are sized by how long the steps take.
        show: show a progress bar, or without a terminal, print a line per epoch.
        part: (epochs done before, epochs in all), if this is a part of a longer training.
        on_epoch: called in the first process with each epoch's metrics; returning True stops the run.

    Raises:
        CheckpointError: `resume` is set, and the checkpoint has other settings or data, or there is no good one.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP, once all is saved.
    """
    processes.refuse_fork()
    step = 0
    about = {} if folder is None else _about(data)
    if resume:
        step, run = _restore(folder, run, about)
    state, best, history = run.state, run.best, run.history
    source, epochs = work.source, len(history["loss"])
    steps_per_epoch = source.windows * source.steps
    trained_before = float(np.nanmax(history["seconds"], initial=0.0))
    began = saved = time.perf_counter()
    clock = (began, step, 0.0)
    window, examples = -1, ()
    ran_on = distributed.describe(mesh)
    stopping, risen, figures = False, False, ""
    scores = history[work.chosen_by]
    ended = np.zeros(scores.shape[1:], bool)
    for epoch in range(step // steps_per_epoch):
        ended = ended | _stalled(scores[: epoch + 1], patience)

    def speed() -> Metrics:
        """The speed and the waiting time since the last call."""
        nonlocal clock
        (then, step_then, waited_then), clock = clock, (time.perf_counter(), step, source.waited)
        rate = (step - step_then) * work.samples / (clock[0] - then) / float(ran_on["devices"])
        return {"samples_per_s_per_device": rate, "waited": source.waited - waited_then, **ran_on}

    def snapshot() -> Snapshot:
        return Snapshot(state, best, history, run.settings)

    def save() -> None:
        if folder is not None:
            checkpoints.save(os.path.join(folder, "latest"), step, snapshot(), about=about)
            checkpoints.save(os.path.join(folder, "best"), step, best, keep=1)

    done_before, in_all = part or (0, epochs)
    bar = progress.bar(in_all, done_before + step / steps_per_epoch, show=show and jax.process_index() == 0)
    with distributed.on(mesh), _interrupt() as interrupted, bar as report:
        while step < epochs * steps_per_epoch and not stopping:
            if ended.all():
                break
            epoch = step // steps_per_epoch
            if window != step // source.steps:
                window = step // source.steps
                examples = source(window)
            stop = min(step + block, (window + 1) * source.steps)
            block_began = time.perf_counter()
            state = work.block(state, *examples, step, stop)
            ok, sums = distributed.numbers(work.sums(state))
            if not np.any(ok):
                if folder is not None:  # for use; `latest` stays, to resume with other settings
                    checkpoints.save(os.path.join(folder, "best"), step, work.weights(state), keep=1)
                return snapshot()
            seconds_per_step, interrupted_now, save_now = processes.agree(
                (time.perf_counter() - block_began) / (stop - step),
                interrupted(),
                time.perf_counter() - saved > SAVE_SECONDS,
            )
            block = _steps_of_block(seconds_per_step)
            step, step_in_epoch = stop, stop - epoch * steps_per_epoch
            loss = np.where(ok, sums["loss"] / step_in_epoch, np.nan)

            if step_in_epoch == steps_per_epoch:
                for name, total in sums.items():
                    history[name][epoch] = np.where(ok, total / step_in_epoch, np.nan)
                if keep == "last" and not risen:  # which is then what the model ends with
                    risen = _warn_of_rise(history["loss"][: epoch + 1])
                state = work.begin(state)
                now = work.weights(state)
                better = np.asarray(ok & ~ended)
                if work.validate is not None:
                    found = distributed.numbers(dict(work.validate(now)))
                    for name, values in found.items():
                        history[name][epoch] = np.where(ok, values, np.nan)
                    if keep == "best":
                        before = np.nanmin(scores[:epoch], axis=0, initial=np.inf)
                        better = np.asarray(better & (scores[epoch] < before))
                best = _select(better, now, best)
                ended = ended | _stalled(scores[: epoch + 1], patience)
                history["seconds"][epoch] = trained_before + time.perf_counter() - began
                if show and work.figures is not None and time.perf_counter() - began > FIGURES_AFTER:
                    figures = work.figures(now)
                if on_epoch is not None and jax.process_index() == 0:
                    metrics = {name: _mean(values[epoch]) for name, values in history.items()}
                    stopping = bool(on_epoch({"epoch": epoch + 1, **metrics, **speed()}))
                if on_epoch is not None:
                    (stopping,) = processes.agree(stopping)
            report(
                done_before + step / steps_per_epoch,
                float(np.nanmin(loss, initial=math.inf)),
                work.samples / seconds_per_step,
                figures,
            )
            if interrupted_now:
                save()
                raise Interrupted(snapshot())
            if save_now and step < epochs * steps_per_epoch:
                save()
                saved = time.perf_counter()
        save()
        if any(processes.agree(interrupted())):
            raise Interrupted(snapshot())
    return snapshot()


def _steps_of_block(seconds_per_step: float) -> int:
    """How many steps are to be trained at once.

    A CPU's program takes its memory from the system when it starts and gives it back: for each step of a U-Net alone,
    that would take a quarter of the time.
    """
    few = min(BLOCK_STEPS, round(MOST_SECONDS / seconds_per_step))
    return max(1, few, round(BLOCK_SECONDS / seconds_per_step))


def _warn_of_rise(losses: Float[np.ndarray, " epochs *members"]) -> bool:
    """Warn if the last epoch's loss is far above the first's, for every member; say whether it is."""
    first, last = losses[0], losses[-1]
    if not np.all(last > first + RISE * np.abs(first)):
        return False
    warnings.warn(
        f"The loss rose from {np.nanmin(first):.4g} in the first epoch to {np.nanmin(last):.4g}. "
        "A lower learning rate may do; or the data have extreme values.",
        stacklevel=4,
    )
    return True


def done(history: Mapping[str, Float[np.ndarray, " epochs *members"]]) -> int:
    """How many epochs have been trained."""
    return int(np.count_nonzero(~np.isnan(history["seconds"].reshape(len(history["seconds"]), -1)[:, 0])))


def last_epoch(scores: Float[np.ndarray, " epochs"], patience: int | None, epochs: int) -> int:
    """After how many of the `epochs` trained epochs a member would have stopped by patience if it had trained alone."""
    return next((n for n in range(1, epochs) if _stalled(scores[:n], patience)), epochs)


def _mean(values: Any) -> float:
    """The mean over the members that are still finite."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


@jax.jit
def _where(better: Any, new: Any, old: Any) -> Any:
    def pick(new: Any, old: Any) -> Any:
        return jax.numpy.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    old = distributed.without_keys(old)
    return distributed.keyed(lambda new: jax.tree.map(pick, new, old), new)


def _select(better: np.ndarray, new: Any, old: Any) -> Any:
    """The new weights of the members that are better, and the old ones of the others."""
    if np.all(better):
        return new
    return _where(better, new, old) if np.any(better) else old


def _stalled(scores: Float[np.ndarray, " epochs *members"], patience: int | None) -> np.ndarray:
    """For each member, whether its best epoch so far is `patience` or more epochs back."""
    if patience is None:
        return np.zeros(scores.shape[1:], bool)
    known = ~np.isnan(scores)
    filled = np.where(known, scores, np.inf)
    return np.asarray(known.any(axis=0) & (known.sum(axis=0) - 1 - filled.argmin(axis=0) >= patience))


def _about(data: Any) -> dict[str, str | int]:
    """The conditions that must be the same when a run is resumed, so that the result has the same bits."""
    about: dict[str, str | int] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return about if data is None else {**about, "data": fingerprint(data)}


_OTHER_BITS = {"jax": "JAX {}", "device": "the device {}", "cores": "{} core(s)"}


def _restore(
    folder: str | os.PathLike[str] | None, like: Snapshot, about: Mapping[str, str | int]
) -> tuple[int, Snapshot]:
    """The step and the snapshot of the newest good checkpoint, which must have the same settings and data.

    It warns if other conditions differ, as the bits of the result then do.
    """
    if folder is None:
        raise errors.ConfigError("resume=True needs the `folder` that holds the checkpoints.")
    step, run = checkpoints.restore(pathlib.Path(folder, "latest"), like)
    changed = [
        f"{name} was {_said(run.settings[name])} and is now {_said(value)}"
        for name, value in like.settings.items()
        if not np.array_equal(np.asarray(run.settings[name]), np.asarray(value))
    ]
    if changed:
        raise errors.CheckpointError(
            f"Can't resume with other settings: {'; '.join(changed)}. Give the same ones, or start another run."
        )
    before = checkpoints.known(pathlib.Path(folder, "latest"), step)
    if "data" in about and before.get("data", about["data"]) != about["data"]:
        raise errors.CheckpointError(
            f"Can't resume {folder} with other data: they have the shape of those that it was trained on, but other "
            "values. Give the same, or start another run."
        )
    others = [
        f"{said.format(before[name])} then, {said.format(about[name])} now"
        for name, said in _OTHER_BITS.items()
        if before.get(name, about[name]) != about[name]
    ]
    if others:
        warnings.warn(
            f"{folder} is resumed under other conditions ({'; '.join(others)}): sums are rounded otherwise, so that "
            "the weights are as good, but not the same bits as without the interruption.",
            stacklevel=4,
        )
    return step, run._replace(history={name: np.array(values) for name, values in run.history.items()})


def _said(setting: Any) -> str:
    return ", ".join(f"{float(value):g}" for value in np.ravel(setting))


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Let the running block finish on Ctrl-C, SIGTERM or SIGHUP: gives a function that tells whether one came.

    A second Ctrl-C stops at once. Signals that were ignored, as SIGHUP under nohup, stay ignored. Only the main thread
    can receive signals; in other threads the function is always False.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    numbers = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    before: dict[Any, Any] = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        came.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
