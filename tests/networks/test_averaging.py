import pytest
import torch
from torch import nn

from adbench.networks.averaging import WeightAverage


def followed(values, decay, corrected):
    """The averaged weight of a one-weight network that starts at 5 and then takes `values`."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(5.0)
    average = WeightAverage(network, decay, corrected)
    for value in values:
        network.weight.data.fill_(value)
        average.update(network)
    return average.average.weight.item()


@pytest.mark.parametrize("corrected", [True, False])
def test_decay_0_equals_the_raw_weights_and_decay_1_the_initial_ones(corrected):
    assert followed([1.0, 2.0, 7.0], decay=0.0, corrected=corrected) == 7.0
    assert followed([1.0, 2.0, 7.0], decay=1.0, corrected=corrected) == 5.0


def test_the_plain_average_starts_from_the_initial_weights():
    assert followed([1.0, 3.0], decay=0.5, corrected=False) == pytest.approx(0.25 * 5 + 0.25 * 1 + 0.5 * 3)


def test_the_corrected_average_has_no_part_of_the_initial_weights():
    assert followed([1.0], decay=0.999, corrected=True) == pytest.approx(1.0)
    assert followed([1.0, 3.0], decay=0.5, corrected=True) == pytest.approx((0.5 * 1 + 3) / 1.5)
    values = [float(v % 7) for v in range(50)]
    weights = [0.9 ** (49 - i) for i in range(50)]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert followed(values, decay=0.9, corrected=True) == pytest.approx(expected, rel=1e-5)


def test_the_average_is_not_trained_and_the_network_is_not_touched():
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    average = WeightAverage(network, 0.9)
    average.update(network)
    assert not any(p.requires_grad for p in average.parameters())
    assert network.weight.requires_grad
    assert torch.equal(network.weight, before)


def test_weights_and_count_survive_a_state_dictionary_and_restart_forgets_both():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(5.0)
    average = WeightAverage(network, 0.5)
    for value in (1.0, 3.0):
        network.weight.data.fill_(value)
        average.update(network)
    restored = WeightAverage(nn.Linear(1, 1, bias=False), 0.5)
    restored.load_state_dict(average.state_dict())
    network.weight.data.fill_(9.0)
    for each in (average, restored):
        each.update(network)
    assert restored.average.weight.item() == average.average.weight.item()
    restored.restart(network)
    assert (restored.average.weight.item(), restored.updates.item()) == (9.0, 0)


def test_a_decay_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        WeightAverage(nn.Linear(1, 1), 1.5)
