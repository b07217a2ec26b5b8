"""The experiments reconstruct, generate, reduce and anomaly, as the command line runs them, on little data."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

import flaxae
import run
from flaxae import autoencoder, baselines, data, denoising, errors, presets, stacked, training
from flaxae.experiments import _flags, _steps, generate
from flaxae.likelihoods import Gaussian
from flaxae.nn.mixer import Mixer


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A file of 120 digits, in an empty working folder."""
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", x=(digits.images[:120] * 15).astype(np.uint8), y=digits.target[:120])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_line(flags):
    """The exit status of `python run.py --exp FLAGS`."""
    try:
        return run.main(["--exp", *flags.split()])
    except SystemExit as ended:  # as tyro's newer versions do where a flag's value is refused
        return ended.code


def results(folder, experiment):
    return json.loads((folder / "runs" / experiment / "1" / "results.json").read_text())


def test_reconstruct_compares_with_pca_and_tells_what_the_code_uses(images):
    command = "reconstruct --data digits.npz --model top_k --latent 30 --epochs 2 --batch-size 24"
    assert command_line(command) == 0
    measured = results(images, "reconstruct")
    assert measured["code/units_on"] == 8
    dataset = data.load("digits.npz")
    train, test = dataset.scaling(dataset.train), dataset.scaling(dataset.test)
    by_eight = np.mean(np.square(baselines.pca_reconstruct(test, train=train, components=8) - test))
    assert measured["baseline/pca/mse"] == pytest.approx(by_eight, rel=1e-4)
    assert (images / "runs/reconstruct/1/report.html").exists()
    assert command_line("reconstruct --from runs/reconstruct/1 --input digits.npz --output out.npy") == 0
    assert data.read("out.npy").shape == (120, 8, 8, 1)
    sampled = "generate --from runs/reconstruct/1 --data digits.npz --output samples.npy --count 3"
    assert command_line(sampled) == 0  # of a model without a prior
    assert data.read("samples.npy").shape == (3, 8, 8, 1)


def test_a_sweep_trains_every_size_and_resumes(images, capsys):
    command = "reconstruct --data digits.npz --sweep latent=8,2 --epochs 2 --batch-size 24 --name sizes"
    assert command_line(command) == 0
    folder = images / "runs/reconstruct/sizes"
    measured = (folder / "results.json").read_text()
    assert set(json.loads(measured)) == {f"{k}/mse/latent_{n}" for k in ("test", "baseline/pca") for n in (2, 8)}
    assert (folder / "figures/elbow.png").exists()
    assert command_line(f"{command} --resume") == 0
    assert (folder / "results.json").read_text() == measured
    assert command_line("reconstruct --sweep latent=2,x") == 2
    assert "sizes of the code, latent=2,8" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_sweep_trains_every_combination_and_keeps_the_best(images, capsys):
    flags = "--data digits.npz --model denoising --noise 0.3 --latent 8 --batch-size 24"
    assert command_line(f"denoise {flags} --epochs 2 --sweep lr=1e-3,1e-2 noise=0.1,0.5 --seeds 2") == 0
    measured = results(images, "denoise")
    each = [f"mse/lr_{r}/noise_{n}/seed_{k}" for r in (0.001, 0.01) for n in (0.1, 0.5) for k in (0, 1)]
    parts = {f"{part}/{name}" for part in ("validation", "test") for name in each}
    assert set(measured) == parts | {"test/mse", "kept/lr", "kept/noise", "kept/seed"}
    assert len({measured[name] for name in parts}) == 16
    best = min(each, key=lambda name: measured[f"validation/{name}"])
    assert measured["test/mse"] == measured[f"test/{best}"]
    assert best == "mse/lr_{kept/lr}/noise_{kept/noise}/seed_{kept/seed}".format(**measured)
    folder = images / "runs/denoise/1"
    assert [path.name for path in (folder / "figures").iterdir()] == ["sweep.png"]
    usage = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Use it: "))
    assert command_line(usage.removeprefix("Use it: flaxae ").replace("new.npy", "digits.npz")) == 0
    kept, digits = flaxae.load(folder), data.load("digits.npz")
    assert kept.model.hyper.level[...] == np.float32(measured["kept/noise"])
    np.testing.assert_array_equal(data.read("made.npy"), denoising.denoise(kept, data.read("digits.npz")))
    test = digits.scaling(digits.test)
    noisy = np.clip(test + 0.3 * np.random.default_rng(0).standard_normal(test.shape), 0, 1).astype(np.float32)
    error = np.mean(np.square(kept.model.reconstruct(noisy) - test))
    assert error == pytest.approx(measured["test/mse"], rel=0.1)  # under other noise


def test_a_sweep_ranks_by_what_the_experiment_is_for(images):
    flags = "--data digits.npz --model vae --latent 2 --batch-size 24 --learning-rate 1e-2 --sweep beta=0,1"
    assert command_line(f"generate {flags} --epochs 60") == 0
    measured = results(images, "generate")
    assert measured["kept/beta"] == 1  # with β = 0 the loss is lower
    assert 0 < measured["test/negative_elbo_nats"] < measured["test/negative_elbo_nats/beta_0/seed_0"]
    assert command_line("generate --from runs/generate/1 --output samples.npy --count 3") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("reconstruct --sweep warmth=1,2", "Known: lr"),
        ("reduce --model vanilla --sweep noise=0.1,0.2", "Known: lr"),  # a model without noise
        ("reduce --sweep lr=1e-3,1e-2", "map can't be swept"),
        ("denoise --sweep latent=2,8", "Known: lr, noise"),
        ("denoise --sweep lr=1e-3 lr=1e-2", "each setting once"),
        ("denoise --sweep noise=nan", "such as lr="),
        ("reconstruct --sweep latent=2,8 lr=1e-3", "goes alone"),
        ("reconstruct --sweep lr=1e-3 --model stacked", "--model stacked is for one model"),
        ("denoise --seeds 3", "--seeds goes with a --sweep"),
        ("reduce --precision bf-16", "'float32', 'bf16'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(images, capsys, flags, message):
    try:
        status = command_line(f"{flags} --data digits.npz --epochs 1")
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("experiment", ["denoise", "reconstruct", "generate", "reduce"])
def test_precision_and_optimizer_are_those_asked_for(images, monkeypatch, capsys, experiment):
    def fit(*arguments, precision, optimizer, **settings):
        raise errors.ConfigError(f"Trained in {precision} by {optimizer}.")

    monkeypatch.setattr("flaxae.training.fit", fit)
    assert command_line(f"{experiment} --data digits.npz --precision bf16 --optimizer muon") == 2
    assert "Trained in bf16 by muon." in capsys.readouterr().err
    config = json.loads((images / f"runs/{experiment}/1/config.json").read_text())
    assert config["settings"]["precision"] == "bf16"


def test_reduce_writes_and_scores_the_codes(images):
    assert command_line("reduce --data digits.npz --epochs 2 --batch-size 24") == 0
    measured = results(images, "reduce")
    assert 0 < measured["test/trustworthiness"] <= 1
    assert 0 <= measured["baseline/pca/knn_accuracy"] <= 1
    assert 0 <= measured["test/kmeans_nmi"] <= 1
    codes = np.load(images / "runs/reduce/1/codes.npz")
    assert codes["train"].shape == (96, 2)
    assert codes["test_labels"].shape == (24,)
    assert data.read("runs/reduce/1/codes.csv").shape == (120, 3)
    assert command_line("reduce --from runs/reduce/1 --input digits.npz --output c.csv") == 0
    assert data.read("c.csv").shape == (120, 2)


def test_generate_samples_and_scores_a_variational_model(images):
    command = "generate --data digits.npz --model vae --epochs 2 --batch-size 24 --latent 2 --draws 20 --scored 10"
    assert command_line(command) == 0
    measured = results(images, "generate")
    assert measured["test/nll_nats"] > 0 > measured["test/elbo_nats"]
    samples = np.load(images / "runs/generate/1/samples.npy")
    assert samples.shape == (50, 8, 8, 1)
    assert samples.dtype == np.uint8
    assert {path.stem for path in (images / "runs/generate/1/figures").iterdir()} >= {"samples", "map", "kl"}
    assert command_line("generate --from runs/generate/1 --output again.npy --count 3") == 0
    assert np.load("again.npy").shape == (3, 8, 8, 1)
    assert command_line("generate --from runs/generate/1 --output sevens.npy --count 3 --label 7") == 0
    assert command_line("generate --from runs/generate/1 --output none.npy --label x") == 2
    assert command_line("generate --from runs/generate/1 --output again --count 2") == 0
    assert data.read("again").keys() == {"0.png", "1.png"}


@pytest.mark.parametrize(("shape", "patch"), [((28, 28, 1), 4), ((64, 48, 3), 8), ((100, 100, 3), 13)])
def test_larger_images_are_generated_in_larger_patches(shape, patch):
    body = generate.in_patches(presets.mixer(latent=8).body, shape)
    assert body == Mixer(patch=patch)
    assert max(body.grid(shape)) <= 8


def test_generate_with_levels_of_latents(images, monkeypatch):
    monkeypatch.setattr("flaxae.experiments.generate.ROWS", 2)  # panels of the figures, which take long to draw
    monkeypatch.setattr("flaxae.experiments.generate.COLUMNS", 3)
    command = "generate --data digits.npz --model hierarchical --epochs 1 --batch-size 24 --latent 6 --draws 20"
    assert command_line(f"{command} --scored 10") == 0
    assert results(images, "generate")["test/nll_nats"] > 0
    assert not (images / "runs/generate/1/figures/map.png").exists()  # two levels are no plane
    assert command_line("generate --from runs/generate/1 --output again.npy --count 3") == 0


def test_generate_samples_tables_from_a_mixture_of_codes(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.experiments.generate.ROWS", 2)  # panels of the figures, which take long to draw
    monkeypatch.setattr("flaxae.experiments.generate.COLUMNS", 3)
    table = pd.DataFrame(rng.standard_normal((60, 3)), columns=["a", "b", "c"]).assign(d=["red", "green"] * 30)
    table.to_csv("t.csv", index=False)
    command = "generate --data t.csv --model vanilla --epochs 1 --latent 2 --components 2 --batch-size 12"
    assert command_line(command) == 0
    samples = pd.read_csv("runs/generate/1/samples.csv")
    assert list(samples.columns) == ["a", "b", "c", "d"]
    assert set(samples.d) <= {"red", "green", "other"}


def test_an_unknown_preset_is_answered_with_those_known(images, capsys):
    assert command_line("reconstruct --data digits.npz --model spares") == 2
    assert "Did you mean 'sparse'" in capsys.readouterr().err


@pytest.fixture
def readings(tmp_path, monkeypatch, rng):
    """A table of 150 rows, a fifth faulty: two columns that go together otherwise, a category, values missing."""
    monkeypatch.chdir(tmp_path)
    load, faulty = rng.standard_normal(150), rng.random(150) < 0.2
    heat = np.where(faulty, -1, 1) * load + 0.1 * rng.standard_normal(150)
    table = pd.DataFrame({"load": load, "heat": heat, "site": rng.choice(["north", "south"], 150)})
    table.loc[3:6, "load"] = np.nan
    table["state"] = np.where(faulty, "fault", "fine")
    table.to_csv("readings.csv", index=False)
    return table


@pytest.mark.filterwarnings("ignore:.*values are missing", "ignore:.*can't promise")
def test_anomaly_flags_rows_of_a_table_and_says_why(readings, tmp_path, capsys):
    command = "anomaly --data readings.csv --label state --normal fine --epochs 60 --name a"
    assert command_line(command) == 0
    folder = tmp_path / "runs/anomaly/a"
    measured = json.loads((folder / "results.json").read_text())
    assert measured["test/auroc"] > 0.5
    assert 0 <= measured["test/false_alarm_rate"] <= measured["test/detection_rate"] <= 1
    found = pd.read_csv(folder / "anomalies.csv")
    assert list(found.label) == list(readings.state[found.row])  # rows are those of the file
    apart = (found.score - measured["threshold"]).abs() > 1e-4  # one of the scores is the threshold
    assert list(found.flagged[apart]) == list((found.score > measured["threshold"])[apart].astype(int))
    assert found.p_value.between(0, 1).all()
    assert set(found.top_1) <= {"load", "heat", "site"}
    np.testing.assert_allclose(found.share_1 + found.share_2 + found.share_3, 1, atol=1e-3)
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "scores", "detection", "columns", "examples", "curves"
    }  # fmt: skip

    new = pd.DataFrame({"site": ["east", "north"], "heat": [0.0, 9.0], "load": [0.0, -9.0], "other": [1, 2]})
    new.to_csv("new.csv", index=False)
    assert command_line("anomaly --from runs/anomaly/a --input new.csv --output out.csv --false-alarms 0.2") == 0
    out = pd.read_csv("out.csv")
    assert out.flagged[1] == 1
    assert out.score[1] > out.score[0]
    for wrong, message in (
        ("--from runs/anomaly/a --input new.csv --output out.npy", "scores are a table"),
        ("--from runs/anomaly/a --input new.csv --output o.csv --threshold f1", "chosen on labels"),
        ("--from runs/anomaly/a --input new.csv --output o.csv --false-alarms 0.001", "Hold out more"),
        (f"{command} --resume --false-alarms 0.001".removeprefix("anomaly "), "Hold out more"),
    ):
        assert command_line(f"anomaly {wrong}") == 2
        assert message in capsys.readouterr().err
    new.drop(columns="load").to_csv("new.csv", index=False)
    assert command_line("anomaly --from runs/anomaly/a --input new.csv --output out.csv") == 2
    assert "Unknown column 'load'" in capsys.readouterr().err

    assert command_line(f"{command} --resume --false-alarms 0.2") == 0  # another threshold, nothing trained again
    again = pd.read_csv(folder / "anomalies.csv")
    assert list(again.score) == list(found.score)
    assert again.flagged.sum() > found.flagged.sum()


@pytest.mark.filterwarnings("ignore:.*can't promise")
def test_anomaly_lays_a_signal_s_scores_on_its_time_line(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    signal = np.sin(np.arange(800) / 3) + 0.05 * rng.standard_normal(800)
    signal[700:712] += 3
    pd.DataFrame({"volt": signal}).to_csv("signal.csv", index=False)
    assert command_line("anomaly --data signal.csv --window 16 --false-alarms 0.1") == 0
    found = pd.read_csv("runs/anomaly/1/anomalies.csv")
    assert (found.begin[0], found.end.iloc[-1]) == (640, 800)
    strangest = found.loc[found.score.idxmax()]
    assert strangest.flagged
    assert 700 - 16 < strangest.begin < 712
    assert 700 <= int(strangest.top_1.removeprefix("moment ")) < 712
    moments = pd.read_csv("runs/anomaly/1/moments.csv")
    assert list(moments.moment) == list(range(640, 800))
    held_by = [(found.begin <= moment) & (moment < found.end) for moment in moments.moment]
    np.testing.assert_allclose(moments.score, [found.score[windows].mean() for windows in held_by], atol=1e-3)
    assert list(moments.flagged) == [found.flagged[windows].max() for windows in held_by]
    assert command_line("anomaly --from runs/anomaly/1 --input signal.csv --output out.csv") == 0
    assert pd.read_csv("out_moments.csv").flagged[700:712].all()


def test_the_windows_a_signal_is_validated_on_share_no_moment_with_those_trained_on():
    time = np.arange(400)[:, None]  # each moment's value is its number, until it is scaled
    dataset = data.load(time, window=20, stride=3)
    config = _flags.Reconstruct(validation=0.1)
    train, validation = _steps.parts(config, dataset)
    assert len(validation) == math.ceil(0.1 * len(dataset.train))
    assert train.max() < validation.min()
    everything = dataset.scaling(dataset.train)
    np.testing.assert_array_equal(validation, everything[-len(validation) :])
    with pytest.raises(errors.DataError, match="5 windows can't be split"):
        _steps.parts(config, dataclasses.replace(dataset, train=dataset.train[:5], train_rows=dataset.train_rows[:5]))
    assert _steps.parts(dataclasses.replace(config, validation=0.0), dataset)[1] == 0.0


@pytest.mark.filterwarnings("ignore:.*can't promise")
def test_anomaly_trains_on_a_class_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    np.savez("digits.npz", x=(digits.images[:400] * 15).astype(np.uint8), y=digits.target[:400])
    assert command_line("anomaly --data digits.npz") == 2
    assert "none can be taken for the normal one" in capsys.readouterr().err
    assert command_line("anomaly --data digits.npz --normal 11") == 2
    assert "Unknown --normal" in capsys.readouterr().err
    assert command_line("anomaly --data digits.npz --normal 0 --epochs 30 --threshold f1") == 0
    measured = results(tmp_path, "anomaly")
    assert measured["test/auroc"] > 0.9
    data.write("new", {f"{i}.png": (digits.images[i] * 15).astype(np.uint8) for i in (390, 391, 392)})
    assert command_line("anomaly --from runs/anomaly/1 --input new --output out.csv") == 0
    out = pd.read_csv("out.csv")
    assert list(out.file) == ["390.png", "391.png", "392.png"]
    assert list(out.flagged) == list((out.score > measured["threshold"]).astype(int))
    data.write("small.png", np.zeros((4, 4), np.uint8))
    assert command_line("anomaly --from runs/anomaly/1 --input small.png --output out.csv") == 2
    assert "small.png has 4 × 4 pixels; the detector was trained on 8 × 8" in capsys.readouterr().err


def test_finetune_compares_and_classifies(images, monkeypatch):
    monkeypatch.setattr("flaxae.experiments.finetune.STEPS", 30)
    monkeypatch.setattr("flaxae.experiments.finetune.DISTILLATION_STEPS", 30)
    flags = "--draws 2 --epochs 1 --batch-size 24"
    assert command_line(f"finetune --data digits.npz --labels 20 --model vanilla --latent 8 {flags}") == 0
    measured = results(images, "finetune")
    for method in ("raw_logistic", "from_scratch", "linear_probe", "fine_tuned", "voted_distilled"):
        assert 0 <= measured[f"test/error_percent/{method}/20"] <= 100
    assert measured["test/error_percent/raw_logistic/96"] < 30
    assert {path.stem for path in (images / "runs/finetune/1/figures").iterdir()} == {"curves", "errors"}
    assert command_line("finetune --from runs/finetune/1 --input digits.npz --output classes.csv") == 0
    lines = (images / "classes.csv").read_text().splitlines()
    assert lines[0] == "class,probability"
    assert len(lines) == 121
    # any run's encoder will do
    assert command_line(f"finetune --from runs/finetune/1 --data digits.npz --labels 10 {flags} --name again") == 0
    assert command_line("finetune --data digits.npz --labels 5") == 2


def test_finetune_learns_of_a_table_with_categories(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.experiments.finetune.STEPS", 30)
    monkeypatch.setattr("flaxae.experiments.finetune.DISTILLATION_STEPS", 60)
    colours, amount = rng.choice(["red", "green", "blue"], 160), rng.normal(100, 20, 160).round(1)
    paid = np.where(colours == "red", "back", "kept")
    pd.DataFrame({"colour": colours, "amount": amount, "paid": paid}).to_csv("orders.csv", index=False)
    flags = "--draws 2 --epochs 2 --batch-size 32 --latent 3"
    assert command_line(f"finetune --data orders.csv --label paid --labels 20 {flags}") == 0
    measured = results(tmp_path, "finetune")
    assert measured["test/error_percent/voted_distilled/20"] < 15
    assert {f"test/error_percent/{name}/20" for name in ("raw_forest", "raw_logistic")} <= set(measured)
    assert (tmp_path / "runs/finetune/1/figures/errors.png").exists()
    assert command_line("finetune --from runs/finetune/1 --input orders.csv --output classes.csv") == 0
    assert (pd.read_csv("classes.csv")["class"] == paid).mean() > 0.85


def test_a_stack_is_pretrained_on_what_it_is_trained_on(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    np.save("table.npy", rng.normal(size=(60, 6)).astype(np.float32))
    pretrained = []
    monkeypatch.setattr(stacked, "pretrain", lambda model, x, **settings: pretrained.append(np.asarray(x)))
    assert command_line("reconstruct --data table.npy --model stacked --latent 2 --epochs 1 --validation 0.3") == 0
    dataset = data.load("table.npy")
    model = autoencoder.build(presets.vanilla(2, Gaussian()), dataset.shape)
    trained, _ = training.split(model, dataset.scaling(dataset.train), 0.3, seed=0, mesh=None)
    np.testing.assert_array_equal(pretrained[0], trained)
