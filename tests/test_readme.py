"""The README's Python example runs as it stands, on little data."""

import pathlib
import re

import numpy as np

import flaxae

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_example_trains_and_applies_a_denoiser(monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    loaded = flaxae.data.load
    few = lambda name: type("Few", (), {"train": loaded(name).train[:2000], "test": loaded(name).test[:200]})  # noqa: E731
    monkeypatch.setattr(flaxae.data, "load", few)
    names = {}
    exec(example, names)
    before = np.square(names["noisy"] - names["x_test"]).mean()
    assert np.square(names["denoised"] - names["x_test"]).mean() < 0.6 * before
    assert len(names["history"]["val_loss"]) == 3
