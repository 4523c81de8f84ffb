"""NCSN and the deepest NCSNv2 against the published wiring, written out from the keys of their state dicts."""

import pytest
import torch
from torch.nn import functional as F

from fastscore.models import NCSNConfig, NCSNv2Config, create

# pool: the first block halves the image; a number: its convolutions are dilated instead
LEVELS = {
    "ncsn": {"res1": None, "res2": "pool", "res3": 2, "res4": 4},
    "ncsn-deeper": {"res1": None, "res2": "pool", "res3": "pool", "res4": 2, "res5": 4},
    "ncsnv2-deepest": {"res1": None, "res2": "pool", "res3": "pool", "res31": "pool", "res4": 2, "res5": 4},
}
REFINED = {
    "ncsn": {"refine1": "res4", "refine2": "res3", "refine3": "res2", "refine4": "res1"},
    "ncsn-deeper": {"refine1": "res5", "refine2": "res4", "refine3": "res3", "refine4": "res2", "refine5": "res1"},
    "ncsnv2-deepest": {
        **{"refine1": "res5", "refine2": "res4", "refine31": "res31"},
        **{"refine3": "res3", "refine4": "res2", "refine5": "res1"},
    },
}
CONFIGS = {
    "ncsn": NCSNConfig(image_size=8, num_channels=2, nf=4, num_scales=5),
    "ncsn-deeper": NCSNConfig(image_size=12, num_channels=2, nf=4, depth=5, num_scales=5, centered=True),
    "ncsnv2-deepest": NCSNv2Config(image_size=24, num_channels=2, nf=4, depth=6, num_scales=5),
}


class Published:
    """The network from its weights alone."""

    def __init__(self, state, labels):
        self.state, self.labels = state, labels
        self.conditional = "normalizer.embed.weight" in state

    def norm(self, key, x):
        if self.conditional:
            gamma, alpha, beta = self.state[f"{key}.embed.weight"][self.labels].chunk(3, 1)
        else:
            gamma, alpha, beta = (self.state[f"{key}.{name}"][None] for name in ("gamma", "alpha", "beta"))
        means = x.mean((2, 3))
        means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True, correction=1) + 1e-5).sqrt()
        h = F.instance_norm(x, eps=1e-5) + (alpha * means)[:, :, None, None]
        return gamma[:, :, None, None] * h + beta[:, :, None, None]

    def norm_in_refinement(self, key, x):
        return self.norm(key, x) if self.conditional else x

    def conv(self, key, x, dilation=1):
        weight = self.state[f"{key}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state.get(f"{key}.bias"), padding=padding, dilation=dilation)

    def mean_pool(self, x):
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4

    def residual(self, key, x, kind, first):
        pooled, dilation = kind == "pool" and first, kind if isinstance(kind, int) else 1
        h = self.conv(f"{key}.conv1", F.elu(self.norm(f"{key}.normalize1", x)), dilation)
        h = F.elu(self.norm(f"{key}.normalize2", h))
        if pooled:
            h, x = (self.mean_pool(self.conv(f"{key}.{n}.conv", v)) for n, v in (("conv2", h), ("shortcut", x)))
            return h + x
        h = self.conv(f"{key}.conv2", h, dilation)
        return h + (self.conv(f"{key}.shortcut", x, dilation) if first and kind else x)

    def units(self, key, x, count):
        for block in range(1, count + 1):
            h = x
            for stage in (1, 2):
                h = F.elu(self.norm_in_refinement(f"{key}.{block}_{stage}_norm", h))
                h = self.conv(f"{key}.{block}_{stage}_conv", h)
            x = x + h
        return x

    def refine(self, key, xs, end):
        hs = [self.units(f"{key}.adapt_convs.{i}", x, 2) for i, x in enumerate(xs)]
        h = hs[0]
        if len(hs) > 1:
            hs = [self.norm_in_refinement(f"{key}.msf.norms.{i}", h) for i, h in enumerate(hs)]
            hs = [self.conv(f"{key}.msf.convs.{i}", h) for i, h in enumerate(hs)]
            h = sum(F.interpolate(h, xs[0].shape[2:], mode="bilinear", align_corners=True) for h in hs)
        h = path = F.elu(h)
        for i in range(2):
            path = self.norm_in_refinement(f"{key}.crp.norms.{i}", path)
            pool = F.avg_pool2d if self.conditional else F.max_pool2d
            path = self.conv(f"{key}.crp.convs.{i}", pool(path, 5, 1, 2))
            h = h + path
        return self.units(f"{key}.output_convs", h, 3 if end else 1)

    def __call__(self, x, levels, refined):
        h, features = self.conv("begin_conv", x), {}
        for level, kind in levels.items():
            h = self.residual(f"{level}.0", h, kind, first=True)
            h = features[level] = self.residual(f"{level}.1", h, None if kind == "pool" else kind, first=False)
        h = None
        for block, level in refined.items():
            h = self.refine(block, [features[level]] if h is None else [features[level], h], end=level == "res1")
        return self.conv("end_conv", F.elu(self.norm("normalizer", h)))


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_published_wiring(name):
    torch.manual_seed(0)
    config = CONFIGS[name]
    network = create(config).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    x = torch.rand(2, *network.shape, dtype=torch.float64)
    labels = torch.tensor([4, 1])
    expected = Published(network.state_dict(), labels)(x if config.centered else 2 * x - 1, LEVELS[name], REFINED[name])
    if name.startswith("ncsnv2"):
        expected = expected / (50.0 * (0.01 / 50.0) ** (labels.double() / 4))[:, None, None, None]
    actual = network(x, labels)
    assert expected.abs().amax((1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth must be one of 4, 5, 6, got 3"),
        ({"image_size": 9}, "image_size must be divisible by 2 for depth 4, got 9"),
        ({"image_size": 12, "depth": 6}, "image_size must be divisible by 8 for depth 6, got 12"),
        ({"nf": 1}, "nf must be an integer of at least 2, got 1"),
        ({"num_scales": 0}, "num_scales must be an integer of at least 1, got 0"),
        ({"num_channels": 1.0}, "num_channels must be an integer of at least 1, got 1.0"),
        ({"ngf": 8}, "unknown option ngf"),
    ],
)
@pytest.mark.parametrize("architecture", ["ncsn", "ncsnv2"])
def test_bad_options_are_refused(architecture, options, message):
    with pytest.raises(ValueError, match=message):
        create({"architecture": architecture, **options})
