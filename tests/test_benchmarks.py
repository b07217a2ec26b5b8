"""The benchmark of training runs on any device: tiny networks, and nothing of how fast this machine is."""

import pytest

from benchmarks import contestants
from benchmarks.networks import Network

MLP = Network((12,), (8,), 2, 64)
CONV = Network((4, 4, 1), (2,), 2, 64, convolutional=True)


@pytest.mark.parametrize(("network", "parameters"), [(MLP, 254), (CONV, 81)], ids=["mlp", "conv"])
def test_a_step_moves_its_weights_and_moments_at_least(network, parameters):
    ours = contestants.flaxae(network, 16)
    ours.train()
    moved = 16 * ours.traffic()
    # weights and Adam's two moments are read and written, gradients too
    assert 4 * 8 * parameters < moved < 1000 * 4 * parameters


def test_a_population_is_timed_as_one():
    contestants.flaxae(MLP, 16, members=3).train()
