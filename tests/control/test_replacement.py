"""Replacement in every sampler: what is known stays known, and is noised to the time of the state."""

import warnings

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, PhiloxNoise
from fastscore.control import (
    Colorization,
    Inpainting,
    LinearOperator,
    LinearReplacement,
    averaging,
    grayscale,
    masking,
    random_projection,
)
from fastscore.samplers import DynamicThresholding, Hook, Moment, describe, names
from fastscore.testing.traffic import traffic_per_step

NEEDED = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}
ADAPTIVE = [name for name in names() if describe(name).calls == "adaptive"]
SHAPE = (3, 3, 4, 4)
KNOWN = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
MASK = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.4
BLOCKS = averaging(2, SHAPE[1:])
OPERATORS = {
    "averaging": BLOCKS,
    "projection": random_projection(17, SHAPE[1:]),
    "weighted gray": grayscale(SHAPE[1:], [0.3, 0.6, 0.1]),
    "conjugate gradients": LinearOperator(BLOCKS.forward, BLOCKS.adjoint, SHAPE[1:], iterations=1),
}
SDES = {"vp": VPSDE(), "ve": VESDE(0.01, 10.0)}
EVERY = [*((name, "ve") for name in names()), ("ddim", "vp"), ("rk45", "vp")]


def make(name, sde="ve", **options):
    """A sampler of images around 0; the steps of the adaptive ones differ from sample to sample."""
    steps = {"rtol": 5e-2, "atol": 5e-2, "max_steps": 60} if name in ADAPTIVE else {"steps": 4}
    prediction = "denoised" if name == "consistency" else "noise"
    options = {"convention": Convention(prediction, "time"), **steps, **NEEDED.get(name, {}), **options}
    return fastscore.sampler(name, SDES[sde], lambda x, label: torch.tanh(x) * x.new_ones(3, 4, 4), **options)


def quietly(sampler, *args, **options):
    """Samples; that an adaptive sampler runs out of its budget is of no interest here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have not reached t")
        return sampler.sample(*args, **options)


class Watch(Hook):
    """What the known part of the states before a step should be."""

    def __init__(self, check):
        self.check, self.calls = check, 0

    def before_step(self, x, moment):
        alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in moment.sde.marginal(moment.t))
        rows = slice(None) if moment.rows is None else moment.rows
        self.check(x, alpha * KNOWN[rows] + sigma * moment.normal(x), rows)
        self.calls += 1


@pytest.mark.parametrize(("name", "sde"), EVERY)
def test_known_pixels_agree_exactly(name, sde):
    def check(x, noised, rows):
        torch.testing.assert_close(x[MASK[rows]], noised[MASK[rows]], rtol=1e-6, atol=1e-6)

    watch = Watch(check)
    x = quietly(make(name, sde), SHAPE, hooks=[Inpainting(KNOWN, MASK), watch])
    assert torch.equal(x[MASK], KNOWN[MASK])
    assert not torch.isclose(x[~MASK], KNOWN[~MASK]).any()
    assert watch.calls > 0


@pytest.mark.parametrize(("name", "sde"), EVERY)
def test_the_gray_image_is_kept(name, sde):
    gray = KNOWN.mean(1, keepdim=True)

    def check(x, noised, rows):
        torch.testing.assert_close(x.mean(1), noised.mean(1), rtol=1e-5, atol=1e-5)

    watch = Watch(check)
    x = quietly(make(name, sde), SHAPE, hooks=[Colorization(gray), watch])
    assert float((x.mean(1, keepdim=True) - gray).abs().max()) <= 4e-7 * float(x.abs().max())  # of the largest channel
    assert not torch.isclose(x, KNOWN).all(1).any()
    assert watch.calls > 0


@pytest.mark.parametrize(
    ("name", "sde", "kind"),
    [*((*case, "projection") for case in EVERY), *(("pc", "ve", kind) for kind in OPERATORS if kind != "projection")],
)
def test_a_measurement_is_kept(name, sde, kind):
    operator, rounding = OPERATORS[kind], 1e-6  # eight float32 roundings of the largest value

    def check(x, noised, rows):
        assert float(operator.forward(x - noised).abs().max()) <= rounding * float(x.abs().max())

    watch = Watch(check)
    x = quietly(make(name, sde), SHAPE, hooks=[LinearReplacement(operator, operator.forward(KNOWN)), watch])
    assert float(operator.forward(x - KNOWN).abs().max()) <= rounding * float(x.abs().max())
    assert not torch.isclose(x, KNOWN).flatten(1).all(1).any()
    assert watch.calls > 0


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_what_is_not_measured_is_left_alone(operator):
    hook = LinearReplacement(operator, operator.forward(KNOWN))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    moment = Moment(0, torch.full((SHAPE[0],), 0.5, dtype=torch.float64), SDES["ve"], PhiloxNoise(0))
    for after in (hook.before_step(x.clone(), moment), hook.at_end(x)):
        change = after - x
        torch.testing.assert_close(operator.pseudo_inverse(operator.forward(change)), change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pc", "rk45"])
def test_of_masks_and_gray_images_it_is_inpainting_and_colorization(name):
    mask, gray = MASK[0], KNOWN.mean(1, keepdim=True)
    pairs = [
        (Inpainting(KNOWN, mask), LinearReplacement(masking(mask), KNOWN * mask)),
        (Colorization(gray), LinearReplacement(grayscale(SHAPE[1:]), gray)),
    ]
    for special, general in pairs:
        one, other = (quietly(make(name), SHAPE, hooks=[hook]) for hook in (special, general))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "rk45", "adaptive-sde"])
@pytest.mark.parametrize("hook", ["inpainting", "colorization", "measurement"])
def test_a_sample_does_not_depend_on_its_batchmates(name, hook):
    """Also where samples leave the batch one after the other: every row keeps its own image."""

    def made(rows):
        if hook == "inpainting":
            return Inpainting(KNOWN[rows], MASK[rows])
        if hook == "measurement":
            return LinearReplacement(BLOCKS, BLOCKS.forward(KNOWN[rows]))
        return Colorization(KNOWN[rows].mean(1, keepdim=True))

    together = make(name, "vp").sample(SHAPE, hooks=[made(slice(None))])
    for i in range(SHAPE[0]):
        rows = slice(i, i + 1)
        alone = make(name, "vp").sample((1, *SHAPE[1:]), noise=PhiloxNoise(0, samples=[i]), hooks=[made(rows)])
        torch.testing.assert_close(alone, together[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        # the state read and written, the images and their mask, a quarter as large, read; one image for all is no pass
        (Inpainting(KNOWN, MASK), {"fastscore::masked_replace_": 3.25}),
        (Inpainting(KNOWN[:1], MASK[:1]), {"fastscore::masked_replace_": 2.0}),
        # x - sigma z made and read, the state read and written
        (Colorization(KNOWN[:, :1]), {"fastscore::linear_step": 2.0, "aten::mean": 1.0, "aten::add_": 2.0}),
    ],
    ids=["inpainting", "inpainting one image", "colorization"],
)
def test_what_a_replacement_moves(hook, expected):
    """In sizes of the state, beside the step itself; no tensor of noise among it."""

    def traffic(*hooks):
        count = traffic_per_step(lambda n: make("ddim", "vp", steps=n).sample(SHAPE, hooks=hooks), KNOWN)
        return {name: moved for name, (_, moved) in count.by_op.items() if moved}

    assert traffic(hook) == traffic() | expected


def test_one_image_for_all_samples():
    one = make("ddim").sample(SHAPE, hooks=[Inpainting(KNOWN[:1], MASK[:1])])
    each = make("ddim").sample(SHAPE, hooks=[Inpainting(KNOWN[:1].expand(SHAPE), MASK[:1])])
    assert torch.equal(one, each)


def test_unknown_values_may_be_anything():
    broken = torch.where(MASK, KNOWN, torch.nan)
    assert torch.equal(
        make("pc").sample(SHAPE, hooks=[Inpainting(broken, MASK)]),
        make("pc").sample(SHAPE, hooks=[Inpainting(KNOWN, MASK)]),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_state(dtype):
    x = make("ddim").sample(SHAPE, dtype=dtype, hooks=[Inpainting(KNOWN, MASK)])
    assert x.dtype == dtype
    assert torch.equal(x[MASK], KNOWN[MASK].to(dtype))
    assert make("ddim").sample(SHAPE, dtype=dtype, hooks=[Colorization(KNOWN[:, :1])]).dtype == dtype


def test_hooks_compose():
    """Of two masks both are kept, and thresholding in between does not touch them."""
    left, right = MASK.clone(), MASK.clone()
    left[..., 2:], right[..., :2] = False, False
    hooks = [Inpainting(KNOWN, left), DynamicThresholding(0.9, 0.5), Inpainting(KNOWN, right)]
    x = make("dpmpp-2m").sample(SHAPE, hooks=hooks)
    assert torch.equal(x[MASK], KNOWN[MASK])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Inpainting(None, MASK), TypeError, "Inpainting: known must be a tensor, got NoneType"),
        (lambda: Inpainting(KNOWN.int(), MASK), TypeError, "known must be float32, .*, got torch.int32"),
        (lambda: Inpainting(KNOWN, MASK.float()), TypeError, "mask must be bool, True .*, got torch.float32"),
        (lambda: Inpainting(KNOWN, [True]), TypeError, "mask must be a bool tensor, got list"),
        (
            lambda: Inpainting(KNOWN, MASK[:2]),
            ValueError,
            r"mask must broadcast to .*\(3, 3, 4, 4\), got \(2, 3, 4, 4\)",
        ),
        (
            lambda: Inpainting(KNOWN[:1], MASK),
            ValueError,
            r"mask must broadcast to .*\(1, 3, 4, 4\), got \(3, 3, 4, 4\)",
        ),
        (lambda: Inpainting(KNOWN / 0, MASK), ValueError, "known must be finite where the mask is True"),
        (lambda: Colorization(KNOWN), ValueError, r"gray must have shape \(B, 1, ...\), .*, got \(3, 3, 4, 4\)"),
        (lambda: Colorization(KNOWN[:, :1].int()), TypeError, "gray must be float32"),
        (lambda: Colorization(KNOWN[:, :1] / 0), ValueError, "gray must be finite"),
        (lambda: LinearReplacement(None, KNOWN), TypeError, "operator must be a LinearOperator, got NoneType"),
        (lambda: LinearReplacement(BLOCKS, 1.0), TypeError, "measurement must be a tensor, got float"),
        (lambda: LinearReplacement(BLOCKS, KNOWN), ValueError, r"what .*, \(3, 2, 2\), got \(3, 3, 4, 4\)"),
        (lambda: LinearReplacement(BLOCKS, BLOCKS.forward(KNOWN) / 0), ValueError, "measurement must be finite"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["ddim", "rk45"])
@pytest.mark.parametrize(
    ("hook", "shape", "message"),
    [
        (lambda: Inpainting(KNOWN, MASK), (2, 3, 4, 4), "Inpainting: known must have 1 row, .* batch, 2, got 3"),
        (lambda: Inpainting(KNOWN, MASK), (4, 3, 4, 4), "Inpainting: known must have 1 row, .* batch, 4, got 3"),
        (lambda: Inpainting(KNOWN[..., :2], MASK[..., :2]), SHAPE, r"known must have the shape .*, got \(3, 3, 4, 2\)"),
        (lambda: Colorization(KNOWN[:2, :1]), SHAPE, "Colorization: gray must have 1 row, .*, 3, got 2"),
        (lambda: Colorization(KNOWN[:, :1, :2]), SHAPE, r"gray must have the shape .*, got \(3, 1, 2, 4\)"),
        (lambda: LinearReplacement(BLOCKS, BLOCKS.forward(KNOWN)), (2, 3, 4, 4), "measurement must have 1 row, .* 3"),
    ],
)
def test_what_does_not_fit_the_state_is_refused(name, hook, shape, message):
    with pytest.raises(ValueError, match=message):
        make(name).sample(shape, hooks=[hook()])


def test_an_operator_for_other_images_is_refused():
    hook = LinearReplacement(averaging(2, (3, 8, 8)), torch.zeros(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"operator must be for images of shape \(3, 4, 4\), got \(3, 8, 8\)"):
        make("ddim").sample(SHAPE, hooks=[hook])
