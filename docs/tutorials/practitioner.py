# %% [markdown]
# # Use it on your own data
#
# You have a table, a signal or images, and a question: what is strange here, what is missing, what would it be
# without the noise? This notebook asks these of data that come with scikit-learn, and of a signal made up here. Put
# your own in their place. Each part names the command that does the same without Python.
#
# It takes some minutes on two CPU cores, and needs no network.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import flaxae
from flaxae import AutoencoderClassifier

# %% tags=["parameters"]
epochs, rows = 100, 569

# %% [markdown]
# ## A table: which rows are strange?
#
# 569 tumours, described by 30 measurements. Say that most are benign, and that a malignant one is strange; the
# detector is not told which is which. `table` may be your own numbers, `pd.read_csv("readings.csv")`.

# %%
bunch = load_breast_cancer(as_frame=True)
table, malignant = bunch.data[:rows], np.asarray(bunch.target[:rows] == 0)
benign = np.flatnonzero(~malignant)
train, rest = benign[: len(benign) * 2 // 3], np.setdiff1d(np.arange(len(table)), benign[: len(benign) * 2 // 3])


def standardised(part):
    """The columns in units of the normal rows' spread."""
    return ((part - table.iloc[train].mean()) / table.iloc[train].std()).to_numpy(np.float32)


detector = flaxae.anomaly.fit(standardised(table.iloc[train]), kind="tabular")
scores = detector.score(standardised(table.iloc[rest]))
print(f"AUROC {roc_auc_score(malignant[rest], scores):.3f}")

# %% [markdown]
# A score is only an order. What to flag is a question of how many false alarms one can bear. The detector kept
# normal rows out of its training; their scores say how probable a score is among normal rows, the p-value:

# %%
p = detector.p_values(standardised(table.iloc[rest]))
flagged = p <= 0.05
print(f"of {(~malignant[rest]).sum()} benign rows {flagged[~malignant[rest]].mean():.1%} are flagged,", end=" ")
print(f"of {malignant[rest].sum()} malignant ones {flagged[malignant[rest]].mean():.1%}")

# %% [markdown]
# Why is the strangest row strange? Each column has a share in the score:

# %%
strangest = table.iloc[rest].iloc[[int(np.argmax(scores))]]
shares = pd.Series(detector.contributions(standardised(strangest))[0], table.columns).sort_values(ascending=False)
print(shares.head(5).round(2).to_string())

# %% [markdown]
# The command is `flaxae anomaly --data readings.csv`, and for new rows
# `flaxae anomaly --from runs/anomaly/1 --input new.csv --output anomalies.csv`. It also takes categories, gaps and
# clocks, finds the scaling, and so does the scikit-learn estimator `flaxae.AutoencoderDetector`. See
# [Tables](../how-to/tables.md).
#
# ## A table: what is missing?
#
# A tenth of the values is taken away. A model of the table fills them in, and is compared with the columns' means. A
# warning tells how many values each column lacks; here that is known.

# %%
rng = np.random.default_rng(0)
known = bunch.data[:rows]
holes = rng.random(known.shape) < 0.1
with_gaps = known.mask(holes)

warnings.filterwarnings("ignore", message=".*values are missing")
data = flaxae.data.load(with_gaps)
likelihood = flaxae.presets.likelihood(data.kind, data.encoding, data.scaling)
model = flaxae.build(flaxae.presets.denoising(16, likelihood, noise=0.3), data.shape)
flaxae.fit(model, data.scaling(data.train), epochs=epochs, batch_size=64, show=False)
trained = flaxae.Trained(
    model, data.scaling, data.shape, data.kind, data.columns, encoding=data.encoding, roles=data.roles
)
filled = trained.impute(with_gaps)

scale = known.std()
of_model = np.abs((filled - known) / scale).to_numpy()[holes].mean()
of_means = np.abs((with_gaps.fillna(with_gaps.mean()) - known) / scale).to_numpy()[holes].mean()
print(f"mean error of what was missing: {of_model:.2f} standard deviations; filled with means, {of_means:.2f}")

# %% [markdown]
# ## A table: few labels
#
# Labels are dear. Ten rows have one; the others are marked by −1, and are learnt from all the same.

# %%
x_train, x_test, y_train, y_test = train_test_split(known, malignant.astype(int), random_state=0, stratify=malignant)
few = np.full(len(y_train), -1)
for kind in (0, 1):
    of_kind = np.flatnonzero(y_train == kind)[:5]
    few[of_kind] = kind

classifier = AutoencoderClassifier(latent=8, epochs=epochs, random_state=0).fit(x_train, few)
mean, deviation = x_train.mean(), x_train.std()
alone = LogisticRegression(max_iter=1000).fit(((x_train - mean) / deviation)[few >= 0], few[few >= 0])
print(f"right: {classifier.score(x_test, y_test):.1%};", end=" ")
print(f"logistic regression on the ten labels, {alone.score((x_test - mean) / deviation, y_test):.1%}")

# %% [markdown]
# On this table the simple model is as good: compare before you choose. The command does so, with several draws of the
# labels: `flaxae finetune --data customers.csv --label segment`.
#
# ## A signal: where does it break?
#
# Two channels of a machine that turns; for a moment, one of them is stuck. The signal is cut into windows. The
# detector learns from the first part, in which nothing happened.

# %%
time = np.arange(4000)
signal = np.stack([np.sin(2 * np.pi * time / 50), np.sin(2 * np.pi * time / 25 + 1)], axis=1)
signal = (signal + 0.1 * rng.normal(size=signal.shape)).astype(np.float32)
signal[3400:3440, 1] = signal[3400, 1]

window, stride = 64, 4
windows = flaxae.data.windows(signal, window, stride)
begins = flaxae.data.starts(len(signal), window, stride)
before = begins + window <= 2800
of_signal = flaxae.anomaly.fit(windows[before], kind="signal", epochs=max(1, epochs // 2))
strange = flaxae.data.overlap_mean(
    np.repeat(of_signal.score(windows)[:, None, None], window, axis=1), stride, len(signal)
)

figure, axes = plt.subplots(2, 1, figsize=(6, 2.6), dpi=90, sharex=True)
axes[0].plot(time[3000:], signal[3000:], linewidth=0.6)
axes[1].plot(time[3000:], strange[3000:], color="tab:red")
axes[1].set_ylabel("how strange")
plt.show()
print("the strangest moment is", int(np.argmax(strange)))

# %% [markdown]
# The command is `flaxae anomaly --data machine.csv --window auto`, which finds the clock, the period and gaps by
# itself. See [Series](../how-to/series.md).
#
# ## Images: what would they be without the noise?
#
# Small digits of 8 × 8 pixels, with noise. For photographs of any size, `flaxae denoise --data photos/` trains a
# U-Net on pieces of them.

# %%
from sklearn.datasets import load_digits

digits = (load_digits().images[..., None] / 16).astype(np.float32)
denoiser = flaxae.build(flaxae.presets.denoising(32, noise=0.3), digits.shape[1:])
flaxae.fit(denoiser, digits[:1500], epochs=epochs, show=False)
noisy = np.clip(digits[1500:] + 0.3 * rng.normal(size=digits[1500:].shape), 0, 1).astype(np.float32)
clean = flaxae.apply(flaxae.Autoencoder.reconstruct, denoiser, noisy)
psnr = flaxae.metrics.psnr
print(f"noisy {psnr(noisy, digits[1500:]).mean():.1f} dB, denoised {psnr(clean, digits[1500:]).mean():.1f} dB")

figure, axes = plt.subplots(3, 1, figsize=(6, 1.9), dpi=90)
for axis, images in zip(axes, (noisy, clean, digits[1500:]), strict=True):
    axis.imshow(np.concatenate(list(images[:10, ..., 0]), axis=1), cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## Keep the model
#
# A saved model is a folder of JSON and arrays, without pickle, with the hash of each file. `flaxae.load` gives back
# what it was.

# %%
import tempfile

with tempfile.TemporaryDirectory() as folder:
    flaxae.save(trained, f"{folder}/filler")
    again = flaxae.load(f"{folder}/filler")
    print(type(again).__name__, again.columns[:3])
    np.testing.assert_allclose(again.impute(with_gaps), filled, rtol=1e-3)

# %% [markdown]
# ## Go on
#
# - [How to](../how-to/index.md): images, series, tables, sound, sentences; export, serve.
# - `flaxae.report` pages: run any of the commands above, and open the `report.html` that it names.
