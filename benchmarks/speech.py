"""Speech denoising: SI-SDR (dB), PESQ and STOI on a speaker who was left out of training, beside simple methods.

    pip install pesq pystoi noisereduce
    python -m benchmarks.speech --data /path/to/clips --leave-out lucas [--steps 4000]

`--data` is a folder of clips whose names hold the speaker's, as the Free Spoken Digit Dataset has them
(7_jackson_32.wav). Utterances of eight clips of that speaker are mixed at 5 dB with white noise, and with babble: six
other clips of the speaker's at once, which are in no utterance. PESQ is narrow-band at 8 kHz.
With --from a run of `--exp denoise` is measured, instead of training one.
"""

import argparse
import pathlib

import numpy as np

from flaxae import sound

SNR = 5.0
CLIPS, UTTERANCES, VOICES = 8, 12, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--leave-out", required=True, help="part of the file names of the speaker to test on")
    parser.add_argument("--steps", type=int, default=sound.STEPS)
    parser.add_argument("--from", dest="run", type=pathlib.Path, help="a run's folder, or a saved denoiser")
    parser.add_argument("--save", type=pathlib.Path, help="where to keep the denoiser")
    options = parser.parse_args()
    clips, rate, names = sound.read_clips(options.data)
    test = [clip for clip, name in zip(clips, names, strict=True) if options.leave_out in name]
    train = [clip for clip, name in zip(clips, names, strict=True) if options.leave_out not in name]
    if options.run:
        folder = options.run / "sound" if (options.run / "sound").exists() else options.run
        denoiser = sound.load(folder)
    else:
        denoiser = sound.fit(train, rate, steps=options.steps)
    if options.save:
        denoiser.save(options.save)
    print(f"{len(train)} clips to train on; tested on {UTTERANCES} utterances of {options.leave_out}, {SNR:g} dB")
    print(f"{'':24s} {'SI-SDR':>7s} {'PESQ':>6s} {'STOI':>6s}")
    for kind in ("white", "babble"):
        pairs = utterances(test, kind)
        for method, denoised in methods(denoiser, rate).items():
            measured = np.mean([measures(denoised(noisy), clean, rate) for noisy, clean in pairs], axis=0)
            print(f"{kind + ', ' + method:24s} {measured[0]:7.2f} {measured[1]:6.2f} {measured[2]:6.3f}", flush=True)


def utterances(clips: list[np.ndarray], kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of noisy and clean, from clips that serve once; those of the babble are others."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(clips))
    spoken, behind = order[: CLIPS * UTTERANCES], order[CLIPS * UTTERANCES :]
    made = []
    for i in range(UTTERANCES):
        clean = np.concatenate([clips[j] for j in spoken[i * CLIPS : (i + 1) * CLIPS]])
        if kind == "white":
            noise = rng.normal(size=len(clean)).astype(np.float32)
        else:
            voices = []
            for _ in range(VOICES):
                voice = np.concatenate([clips[j] for j in rng.choice(behind, 2 * CLIPS)])
                voices.append(np.resize(voice, len(clean)) / max(sound.root_mean_square(voice), 1e-9))
            noise = np.sum(voices, axis=0).astype(np.float32)
        made.append((sound.mixed(clean, noise, SNR), clean))
    return made


def methods(denoiser: sound.SoundDenoiser, rate: int) -> dict:
    """By name, functions of a noisy sound."""
    import noisereduce

    return {
        "noisy": lambda noisy: noisy,
        "noisereduce": lambda noisy: noisereduce.reduce_noise(y=noisy, sr=rate).astype(np.float32),
        "Wiener filter": lambda noisy: sound.wiener(noisy, rate),
        "flaxae": denoiser.denoise,
    }


def measures(made: np.ndarray, clean: np.ndarray, rate: int) -> tuple[float, float, float]:
    """SI-SDR in dB, PESQ, STOI."""
    import pesq
    import pystoi

    return (
        sound.si_sdr(made, clean),
        pesq.pesq(rate, clean, made, "nb" if rate == 8000 else "wb"),
        float(pystoi.stoi(clean, made, rate)),
    )


if __name__ == "__main__":
    main()
