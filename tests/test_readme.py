"""The README's Python examples run as they stand, on little data, and it fits two screens."""

import dataclasses
import pathlib
import re

import numpy as np

import flaxae

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_examples_train_a_denoiser_and_a_part_of_ones_own(monkeypatch, own_names):
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    loaded = flaxae.data.load
    few = lambda name: type("Few", (), {"train": loaded(name).train[:2000], "test": loaded(name).test[:200]})  # noqa: E731
    monkeypatch.setattr(flaxae.data, "load", few)
    names = {"__name__": "readme"}
    exec(first, names)
    before = np.square(names["noisy"] - names["x_test"]).mean()
    assert np.square(names["denoised"] - names["x_test"]).mean() < 0.6 * before
    assert len(names["history"]["val_loss"]) == 3

    fit, names["x_train"] = flaxae.fit_population, names["x_train"][:200]
    small = {"epochs": 1, "batch_size": 64, "show": False}

    def fit_small(config, x, **settings):
        config = dataclasses.replace(config, body=flaxae.MLP((16,))).with_latent(16)
        return fit(config, x, **settings, **small)

    monkeypatch.setattr(flaxae, "fit_population", fit_small)
    exec(second, names)
    population = names["population"]
    losses = {member.settings["weight"]: member.history["loss"][0] for member in population.members}
    assert len(population.members) == 6
    assert losses[0.1] < losses[1.0]


def test_it_fits_two_screens_and_its_pictures_are_small():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    shown = re.findall(r"docs/pictures/\w+\.png", text)
    assert sum((README.parent / path).stat().st_size for path in shown) < 300_000
    drawn = re.search(r"python -m docs\.pictures ([\w ]+)", text)
    assert drawn is not None
    assert set(drawn[1].split()) == {pathlib.Path(path).stem for path in shown}


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert link.startswith("https://") or (README.parent / link).exists(), link
