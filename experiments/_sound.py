"""The denoising experiment on sound: a mask of the short-time spectrum, learnt from clean clips and noise."""

import pathlib

import numpy as np

from flaxae import data, experiments, runs, sound
from flaxae.data import Signal
from flaxae.data.recordings import is_folder
from flaxae.errors import ConfigError
from flaxae.experiments import _flags, _steps
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import checkpoints

SNR = 5.0  # dB, of the mixtures that are measured
MEASURED, PLAYED = 12, 3  # stretches
SECONDS = 4.0  # of a stretch


def wanted(config: _flags.Denoise) -> bool:
    """Whether the data are sound, to be denoised as such: unless windows, or a model, are asked for."""
    if config.window is not None or config.model is not None or config.sweep or ":" in config.data:
        return False
    path = pathlib.Path(config.data).expanduser()
    if path.is_dir():
        return is_folder(path) and bool(sound.files_in(path))
    known = data.formats.find(path)
    return known is not None and known.kind == "signal"


def train(config: _flags.Denoise) -> None:
    """Train and evaluate a denoiser in a run's folder, and say how to use it."""
    clips, rate, names = sound.read_clips(config.data)
    noises = [] if config.noise_data is None else sound.read_clips(config.noise_data, rate)[0]
    clips, names = _at_least_two(clips, names)
    order = np.random.default_rng(config.seed).permutation(len(clips))
    held = max(1, len(clips) // 10)
    test, known = [clips[i] for i in order[:held]], [clips[i] for i in order[held:]]
    seconds = sum(map(len, clips)) / rate
    what = "the noise given" if noises else "white noise, coloured noise and babble of the clips"
    say(
        f"{len(clips):,} clips, {seconds:,.0f} s at {rate:,} Hz: {len(known):,} to train on, {held:,} to test on. "
        f"Mixed in at {sound.SNR[0]:g} to {sound.SNR[1]:g} dB: {what}."
    )
    steps = sound.STEPS if config.epochs is None else config.epochs * sound.EPOCH
    settings = {"settings": _steps.settings(config), "sound": {"rate": rate, "clips": len(clips), "steps": steps}}
    with runs.start("denoise", config.name, settings, resume=config.resume) as run, _steps.resumable(run):
        with _steps.resources(config, run) as resources:
            denoiser = sound.fit(
                known,
                rate,
                noises=noises,
                steps=steps,
                seed=config.seed,
                folder=run.checkpoints,
                resume=config.resume and checkpoints.begun(run.checkpoints),
                on_epoch=resources["on_epoch"],
            )
        denoiser.save(run.folder / "sound")
        evaluate(run, denoiser, test, noises, config)


def apply(config: _flags.Denoise) -> None:
    """Denoise the sound --input into --output, or each of a folder."""
    denoiser = sound.load(config.from_ / "sound")
    failed = denoiser.convert(config.input, config.output)
    say(f"Denoised {config.input} into {config.output}.")
    if failed:
        raise ConfigError(f"{len(failed)} files could not be denoised: {', '.join(failed[:5])}.")


def evaluate(
    run: Run,
    denoiser: sound.SoundDenoiser,
    clips: list[np.ndarray],
    noises: list[np.ndarray],
    config: _flags.Denoise,
) -> None:
    """Denoise clips that were kept from training: the table, results.json, spectrograms, players, the report."""
    rate, rng = denoiser.rate, np.random.default_rng(config.seed + 2)
    mixed = sound.mixtures(clips, noises, rate, seed=config.seed)
    length = round(SECONDS * rate)
    pairs = [mixed.pair(length, rng, snr=SNR) for _ in range(MEASURED)]
    methods = {"noisy": lambda x: x, "Wiener filter": lambda x: sound.wiener(x, rate), "flaxae": denoiser.denoise}
    made = {name: [method(noisy) for noisy, _ in pairs] for name, method in methods.items()}
    scores = {
        name: float(np.mean([sound.si_sdr(x, clean) for x, (_, clean) in zip(of, pairs, strict=True)]))
        for name, of in made.items()
    }
    caption = f"{MEASURED} stretches of {SECONDS:g} s, of clips kept from training, with noise at {SNR:g} dB"
    table = report.Table(caption, ["", report.Column("SI-SDR (dB)", better="higher")], list(map(list, scores.items())))
    shown = {"Clean": pairs[0][1], "Noisy": pairs[0][0], "Denoised": made["flaxae"][0]}
    framing = denoiser.framing
    plots.spectrograms({name: framing.decibels(x) for name, x in shown.items()}, run.figure("spectrograms"), rate=rate)
    players = []
    loudest = max(float(np.abs(x).max()) for part in (*pairs[:PLAYED], made["flaxae"][:PLAYED]) for x in part)
    for i in range(PLAYED):
        for name, x in (("noisy", pairs[i][0]), ("denoised", made["flaxae"][i]), ("clean", pairs[i][1])):
            path = run.folder / "sounds" / f"{i + 1}_{name}.flac"
            scaled = (0.9 * x / loudest).astype(np.float32)[:, None]
            data.write(path, Signal(scaled, rate, subtype="PCM_16"))
            players.append((f"Stretch {i + 1}, {name}", path))
    results = {f"test/{name.lower().replace(' ', '_')}/si_sdr_db": value for name, value in scores.items()}
    new = "noisy/" if pathlib.Path(config.data).is_dir() else "noisy.wav"
    usage = experiments.command("denoise", from_=run.folder, input=new, output=new.replace("noisy", "clean"))
    summary = (
        f"From {scores['noisy']:.1f} dB of SI-SDR when noisy to {scores['flaxae']:.1f} dB; a spectral Wiener filter "
        f"reaches {scores['Wiener filter']:.1f} dB."
    )
    figures = [("Spectrograms of a stretch: clean, as the model was given it, as it gave it back.", "spectrograms")]
    history = run.history()
    columns = {name: [epoch[name] for epoch in history] for name in ("loss", "val_loss", "seconds")}
    _steps.finish(run, "Denoising sound", summary, [table], figures, results, usage, history=columns, sounds=players)


def _at_least_two(clips: list[np.ndarray], names: list[str]) -> tuple[list[np.ndarray], list[str]]:
    """One or two long recordings are cut in ten each, so that some can be kept from training."""
    if len(clips) > 2:
        return clips, names
    cut = [part for clip in clips for part in np.array_split(clip, 10) if len(part)]
    return cut, [names[0]] * len(cut)
