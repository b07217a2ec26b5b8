"""The README's Python examples run as they stand, on little data."""

import dataclasses
import pathlib
import re

import numpy as np

import flaxae

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_example_trains_and_applies_a_denoiser(monkeypatch, capsys):
    example, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    loaded = flaxae.data.load
    few = lambda name: type("Few", (), {"train": loaded(name).train[:2000], "test": loaded(name).test[:200]})  # noqa: E731
    monkeypatch.setattr(flaxae.data, "load", few)
    names = {}
    exec(example, names)
    before = np.square(names["noisy"] - names["x_test"]).mean()
    assert np.square(names["denoised"] - names["x_test"]).mean() < 0.6 * before
    assert len(names["history"]["val_loss"]) == 3


def test_the_example_of_a_part_of_ones_own_trains(digits):
    _, example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {"__name__": "readme"}
    exec(example, names)
    config = dataclasses.replace(names["config"], body=flaxae.MLP((16,))).with_latent(16)
    settings = {"epochs": 1, "batch_size": 64, "show": False}
    population = flaxae.fit_population(config, digits[:200], weight=(0.1, 1.0), **settings)
    losses = [member.history["loss"][0] for member in population.members]
    assert losses[0] < losses[1]
