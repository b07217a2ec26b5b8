"""What every test shares: strict JAX, two fake CPU devices, quick Hypothesis profiles."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import xla_flags

# Compiling is most of the time of most tests, so here it is done in a hurry; what the tests start inherits all this.
# Without the fusion emitters it takes half as long. And there is a worker for each core: more threads would only spin.
if "XLA_FLAGS" not in os.environ:
    quick = xla_flags.known("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
    os.environ["XLA_FLAGS"] = " ".join(["--xla_force_host_platform_device_count=2", *quick])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits it, so that what one compiles the other reads
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flaxae-tests-")  # not the user's
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# What is added up has to be of one type and one number of axes: what JAX would guess is said in the code.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup has it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis
import numpy as np
import pytest
from sklearn.datasets import load_digits

hypothesis.settings.register_profile(  # how long examples take is the machine's doing
    "quick", max_examples=10, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("quick")


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """scikit-learn's 1,797 digits, [n, 8, 8, 1] in [0, 1]."""
    return (load_digits().images[..., None] / 16).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def small_forests() -> Iterator[None]:
    """Random forests have a sixth of their trees: fitting those is most of the time of what is tested around them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxae.finetuning.probes.TREES", 50)
        yield


@pytest.fixture
def own_names() -> Iterator[None]:
    """Parts that other tests registered are unknown to this one, and its own are to others."""
    from flaxae import specs

    def taken() -> dict[str, Any]:
        others = [name for name, part in specs.PARTS.items() if not part.__module__.startswith("flaxae.")]
        return {name: specs.PARTS.pop(name) for name in others}

    before = taken()
    yield
    taken()
    specs.PARTS.update(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
