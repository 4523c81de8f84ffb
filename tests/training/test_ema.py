"""The weight average against its recursion in plain numbers."""

import pytest
import torch
from torch import nn

from fastscore.training.ema import EMA


def model(value):
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.999])
def test_recursion_with_growing_decay(decay):
    ema, shadow = EMA(model(1.0), decay), 1.0
    for n in range(1, 30):
        ema.update(model(float(n)))
        d = min(decay, (1 + n) / (10 + n))
        shadow = d * shadow + (1 - d) * n
        assert ema.shadow[0].tolist()[0][0] == pytest.approx(shadow, rel=1e-6)
    assert ema.updates == 29


def test_averaged_lends_the_weights_and_gives_them_back():
    network = model(1.0)
    ema = EMA(network, 0.5)
    nn.init.constant_(network.weight, 3.0)
    with ema.averaged(network) as lent:
        assert lent is network
        assert (network.weight == 1).all()
    assert (network.weight == 3).all()
    with pytest.raises(RuntimeError, match="inside"), ema.averaged(network):
        raise RuntimeError("inside")
    assert (network.weight == 3).all()


def test_frozen_parameters_are_left_out():
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    network[0].requires_grad_(False)
    assert EMA(network).names == ["1.weight", "1.bias"]


def test_state_round_trip():
    ema, other = EMA(model(1.0), 0.9), EMA(model(5.0), 0.5)
    ema.update(model(2.0))
    other.load_state_dict(ema.state_dict())
    assert (other.decay, other.updates) == (0.9, 1)
    assert torch.equal(other.shadow[0], ema.shadow[0])
    other.update(model(3.0))
    assert not torch.equal(other.shadow[0], ema.shadow[0]), "the state must be copied, not shared"


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="the averages are of other parameters: 1 names were saved, this model has 2"):
        EMA(nn.Linear(2, 1)).load_state_dict(EMA(model(1.0)).state_dict())


def test_bad_decay_is_refused():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        EMA(model(1.0), 1.0)
