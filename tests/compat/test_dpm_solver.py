"""compat.dpm_solver: recorded runs by its signature, the schedule, guidance, corrections, errors."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fastscore import NonFiniteError
from fastscore.compat.dpm_solver import DPM_Solver, NoiseScheduleVP, model_wrapper
from fastscore.samplers import DynamicThresholding
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Watched

GOLDEN = Path(__file__).parents[1] / "golden"
MIXTURE = load_mixture(GOLDEN / "samplers")
EVERY = load_cases(GOLDEN / "samplers", "dpm")
COMMON = [case for case in EVERY if case.id.count(".") <= 7 and case.args["method"] in ("singlestep", "multistep")]
SPECIAL = [
    case
    for case in EVERY
    if case.args["method"] == "singlestep_fixed"
    or case.args["skip_type"] == "time_quadratic"
    or case.args["solver_type"] == "taylor"
    or case.args["model_type"] != "noise"
    or case.args["correcting_x0_fn"]
    or case.args["t_end"]
    or not case.args["lower_order_final"]
    or "cosine" in case.id
    or "inverse" in case.id
]
# Order 3 in float32 takes other steps, see the tests of the sampler.
ADAPTIVE = [case for case in EVERY if case.args["method"] == "adaptive" and case.args["order"] == 2]
CASES = SPECIAL + [case for case in COMMON if case not in SPECIAL][::12] + ADAPTIVE
LINEAR = NoiseScheduleVP("linear")
BETAS = torch.linspace(1e-4, 0.02, 1000)


def schedule_of(case):
    schedule = case.args["noise_schedule"]
    if schedule["schedule"] == "linear":
        return NoiseScheduleVP(**schedule)
    schedule_vp = NoiseScheduleVP("discrete", betas=case.tensors["betas"])
    assert schedule_vp.total_N == schedule["total_N"]
    return schedule_vp


def test_the_sample_of_recorded_runs_is_broad():
    assert 60 <= len(CASES) <= 80
    for name in ("method", "order", "skip_type", "algorithm_type", "denoise_to_zero", "steps", "model_type"):
        assert {case.args[name] for case in CASES} == {case.args[name] for case in EVERY}, name


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "called"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_recorded_runs(case, folded):
    """With the conversion to noise folded into the steps, and as a function that is called."""
    args, ns, model = case.args, schedule_of(case), golden_model(case, MIXTURE)
    model.record = True
    prediction = model_wrapper(model, ns, model_type=args["model_type"], guidance_type=args["guidance_type"])
    model_fn = prediction if folded else (lambda x, t: prediction(x, t))
    solver = DPM_Solver(model_fn, ns, args["algorithm_type"], args["correcting_x0_fn"])
    run = solver.inverse if "inverse" in case.function else solver.sample
    names = ("steps", "t_start", "t_end", "order", "skip_type", "method")
    names += ("lower_order_final", "denoise_to_zero", "solver_type", "atol", "rtol")
    x = run(case.tensors["x_T"], **{name: args[name] for name in names})
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance
    if args["method"] != "adaptive":  # which here does not call the network again after a rejection
        assert model.calls == case.scalars["model_calls"]
        labels = torch.stack([label[0].double() for label in model.labels])
        expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
        # grids even in log-SNR start from 1 - alpha^2 in float32
        rtol = 2e-6 if args["skip_type"] != "logSNR" else 5e-3
        torch.testing.assert_close(labels, expected, rtol=rtol, atol=2e-7 * float(expected.max()))


@pytest.mark.parametrize("name", ["linear", "discrete"])
def test_schedule_equals_the_recorded_one(name):
    (case,) = load_cases(GOLDEN / "sde_tables", "dpm", f"dpm_schedule.{name}")
    with safe_open(case.path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(case.prefix)]  # noqa: SIM118
        table = {key.removeprefix(case.prefix): file.get_tensor(key) for key in keys}
    ns = LINEAR if name == "linear" else NoiseScheduleVP(betas=table["betas"])
    t = table["t"]
    assert (ns.schedule, ns.T, ns.total_N) == (name, 1.0, 1000)
    sigma = table["sigma"].double()
    lost = 2.0**-24 / sigma.square()  # 1 - alpha^2 in float32, relative to sigma^2
    torch.testing.assert_close(ns.marginal_log_mean_coeff(t), table["log_alpha"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ns.marginal_alpha(t), table["alpha"], rtol=1e-6, atol=0)
    assert bool(((ns.marginal_std(t) - sigma).abs() <= (lost + 1e-6) * sigma).all())
    assert bool(((ns.marginal_lambda(t) - table["lambda"].double()).abs() <= lost + 1e-6 * table["lambda"].abs()).all())
    torch.testing.assert_close(ns.inverse_lambda(ns.marginal_lambda(t.double())), t.double(), rtol=1e-10, atol=0)
    torch.testing.assert_close(ns.inverse_lambda(table["lambda"]), table["inverse_lambda"], rtol=1e-3, atol=1e-6)
    if name == "linear":
        assert (ns.beta_0, ns.beta_1) == (0.1, 20.0)
    else:
        assert ns.t_array.shape == ns.log_alpha_array.shape == (1, 1000)
        torch.testing.assert_close(ns.t_array, table["t_array"].reshape(1, -1), rtol=1e-6, atol=0)
        torch.testing.assert_close(ns.log_alpha_array, table["log_alpha_array"].reshape(1, -1), rtol=1e-5, atol=1e-7)


def test_schedule_of_either_table_shape_and_dtype():
    ns = NoiseScheduleVP("discrete", alphas_cumprod=(1 - BETAS.double()).cumprod(0), dtype=torch.float64)
    same = NoiseScheduleVP(betas=BETAS.double())
    assert ns.log_alpha_array.dtype == torch.float64
    for t in (torch.tensor(0.3), torch.rand(3), torch.rand(2, 3, dtype=torch.float64)):
        value = ns.marginal_std(t)
        assert (value.shape, value.dtype) == (t.shape, t.dtype)
        torch.testing.assert_close(value, same.marginal_std(t))
    assert NoiseScheduleVP(betas=torch.linspace(1e-3, 0.999, 50)).total_N < 50  # below lambda = -5.1 nothing is left


def smooth(x, t):
    return torch.tanh(0.7 * x) + 0.1 * torch.sin(t).reshape(-1, *[1] * (x.ndim - 1))


def start(seed=0, dtype=torch.float64):
    return torch.randn(3, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ns", [LINEAR, NoiseScheduleVP(betas=BETAS)], ids=["linear", "discrete"])
@pytest.mark.parametrize("model_type", ["noise", "x_start", "v", "score"])
def test_model_wrapper_gives_noise(ns, model_type):
    """Also with guidance, in which the predictions of noise are combined."""
    x, t = start(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (ns.marginal_alpha, ns.marginal_std))
    t_input = t if ns is LINEAR else 1000 * (t - 1 / 1000)

    def noise_of(h):
        return {"noise": h, "x_start": (x - alpha * h) / sigma, "v": alpha * h + sigma * x, "score": -sigma * h}[
            model_type
        ]

    def network(x, label, cond=None, *, shift=0.0):
        torch.testing.assert_close(label[:3], t_input)
        return smooth(x, label / 1000) + shift + (0 if cond is None else cond.reshape(-1, 1, 1, 1))

    options = {"model_type": model_type, "model_kwargs": {"shift": 0.2}}
    plain = noise_of(network(x, t_input, shift=0.2))
    torch.testing.assert_close(model_wrapper(network, ns, **options)(x, t), plain)
    one = model_wrapper(lambda x, label, **_: smooth(x, label), ns, **options)
    torch.testing.assert_close(one(x, t[:1]), one(x, t[:1].expand(3)))

    cond, uncond = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    options |= {"guidance_type": "classifier-free", "condition": cond}
    with_cond = noise_of(network(x, t_input, cond, shift=0.2))
    torch.testing.assert_close(model_wrapper(network, ns, **options, guidance_scale=3.0)(x, t), with_cond)
    options["unconditional_condition"] = uncond
    torch.testing.assert_close(model_wrapper(network, ns, **options)(x, t), with_cond)
    guided = model_wrapper(network, ns, **options, guidance_scale=3.0)(x, t)
    torch.testing.assert_close(guided, plain + 3.0 * (with_cond - plain))

    def classifier(x, label, y, *, power):
        torch.testing.assert_close(label, t_input)
        return -0.5 * power * (x - y.reshape(-1, 1, 1, 1)).square().flatten(1).sum(1)

    guided = model_wrapper(
        network, ns, model_type, {"shift": 0.2}, "classifier", cond, None, 2.0, classifier, {"power": 3.0}
    )(x, t)
    gradient = -3.0 * (x - cond.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(guided, plain - 2.0 * sigma * gradient)


@pytest.mark.parametrize("guidance", ["uncond", "classifier", "classifier-free"])
def test_guided_runs_equal_those_of_the_function(guidance):
    ns = NoiseScheduleVP(betas=BETAS)
    cond = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)

    def network(x, label, cond=None):
        return smooth(x, label / 1000) + (0 if cond is None else 0.1 * cond.reshape(-1, 1, 1, 1))

    def classifier(x, label, y):
        return -0.5 * (x - y.reshape(-1, 1, 1, 1)).square().flatten(1).sum(1)

    wrapped = model_wrapper(network, ns, "v", None, guidance, cond, 0 * cond, 2.0, classifier)
    options = {"steps": 6, "order": 3, "skip_type": "logSNR", "method": "singlestep", "denoise_to_zero": True}
    for algorithm in ("dpmsolver", "dpmsolver++"):
        folded = DPM_Solver(wrapped, ns, algorithm).sample(start(), **options)
        called = DPM_Solver(lambda x, t: wrapped(x, t), ns, algorithm).sample(start(), **options)
        torch.testing.assert_close(folded, called, rtol=0, atol=1e-9)


def first_order(times, correct_x0=None, correct_xt=None, denoise=False):
    """DDIM in the clean image, with corrections as the published loop of method "multistep" has them."""
    x, states = start(), []
    alpha, sigma = (
        f(torch.tensor(times, dtype=torch.float64)).tolist() for f in (LINEAR.marginal_alpha, LINEAR.marginal_std)
    )

    def clean(i):
        t = torch.full((3,), times[i], dtype=torch.float64)
        x0 = (x - sigma[i] * smooth(x, t)) / alpha[i]
        return x0 if correct_x0 is None else correct_x0(x0, t[0])

    for i in range(len(times) - 1):
        x0 = clean(i)
        if i == 0:
            x = x if correct_xt is None else correct_xt(x, times[0], 0)
            states.append(x)
        x = sigma[i + 1] / sigma[i] * x + (alpha[i + 1] - sigma[i + 1] / sigma[i] * alpha[i]) * x0
        x = x if correct_xt is None else correct_xt(x, times[i + 1], i + 1)
        states.append(x)
    if denoise:
        x = clean(len(times) - 1)
        states.append(x if correct_xt is None else correct_xt(x, times[-1], len(times)))
    return states


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("skip_type", ["time_uniform", "time_quadratic", "logSNR"])
def test_corrections_and_intermediates_of_multistep(skip_type, denoise):
    def correct_x0(x0, t):
        assert t.shape == ()
        return x0.clamp(-0.8, 0.8) * (1 + 0.1 * t)

    def correct_xt(x, t, step):
        return 0.9 * x + 0.05 * float(t) + 0.01 * step

    first, last = 0.8, 0.05
    match skip_type:
        case "time_uniform":
            times = torch.linspace(first, last, 5, dtype=torch.float64).tolist()
        case "time_quadratic":
            times = torch.linspace(math.sqrt(first), math.sqrt(last), 5, dtype=torch.float64).square().tolist()
        case _:
            ends = LINEAR.marginal_lambda(torch.tensor([first, last], dtype=torch.float64)).tolist()
            times = LINEAR.inverse_lambda(torch.linspace(*ends, 5, dtype=torch.float64)).tolist()
    options = {
        "steps": 4,
        "t_start": first,
        "t_end": last,
        "order": 1,
        "skip_type": skip_type,
        "denoise_to_zero": denoise,
    }
    for x0_fn, xt_fn in ((None, None), (correct_x0, None), (None, correct_xt), (correct_x0, correct_xt)):
        expected = first_order(times, x0_fn, xt_fn, denoise)
        solver = DPM_Solver(smooth, LINEAR, correcting_x0_fn=x0_fn, correcting_xt_fn=xt_fn)
        x = start()
        result, states = solver.sample(x, return_intermediate=True, **options)
        assert len(states) == len(expected)
        for ours, theirs in zip(states, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert torch.equal(result, states[-1])
        assert torch.equal(solver.sample(x, **options), result)
        assert torch.equal(x, start())


def test_dpmsolver_corrects_the_clean_image_of_denoise_to_zero_alone():
    options = {"steps": 4, "order": 2, "denoise_to_zero": True}
    for method in ("multistep", "singlestep", "adaptive"):
        for correction in ("dynamic_thresholding", lambda x0, t: x0 * (1 + t)):
            plain = DPM_Solver(smooth, LINEAR, "dpmsolver").sample(start(), method=method, **options)
            corrected = DPM_Solver(smooth, LINEAR, "dpmsolver", correction, None, 0.5, 0.9)
            x = corrected.sample(start(), method=method, **options)
            if correction == "dynamic_thresholding":
                expected = DynamicThresholding(0.9, 0.5).on_denoised(plain, plain, None)
            else:
                expected = plain * 1.001
            torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
            options |= {"denoise_to_zero": False}
            without = [
                DPM_Solver(smooth, LINEAR, "dpmsolver", fn).sample(start(), method=method, **options)
                for fn in (None, correction)
            ]
            assert torch.equal(*without)
            options |= {"denoise_to_zero": True}


@pytest.mark.parametrize(("method", "ends"), [("singlestep", 4), ("singlestep_fixed", 3)])
def test_corrections_of_singlestep_come_after_steps(method, ends):
    """From number 0 on; 10 calls of order 3 are steps of 3, 3, 3 and 1 calls, or 3 of order 3."""
    seen = []

    def correct(x, t, step):
        seen.append((step, float(t)))
        return x

    options = {"steps": 10, "order": 3, "method": method, "t_end": 0.1}
    solver = DPM_Solver(smooth, LINEAR, correcting_xt_fn=correct)
    x, states = solver.sample(start(), denoise_to_zero=True, return_intermediate=True, **options)
    assert [step for step, _ in seen] == list(range(ends + 1))
    times = [1 - 0.9 * calls / (10 if method == "singlestep" else 9) for calls in (3, 6, 9, 10)[:ends]]
    assert [t for _, t in seen] == pytest.approx([*times, 0.1])
    assert len(states) == ends + 1
    assert torch.equal(states[-1], x)
    plain = DPM_Solver(smooth, LINEAR).sample(start(), denoise_to_zero=True, **options)
    torch.testing.assert_close(x, plain, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_there_and_back(method):
    """With an error of second order: the published multistep method, and one step of order 1 of the other."""
    solver, x, errors = DPM_Solver(smooth, LINEAR), start(), []
    options = {"order": 3, "skip_type": "logSNR", "method": method}
    for steps in (150, 300):
        encoded = solver.inverse(x, steps, t_start=0.2, **options)
        assert float((encoded - x).abs().max()) > 1
        errors.append(float((solver.sample(encoded, steps, t_end=0.2, **options) - x).abs().max()))
    assert errors[1] < 3e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("model_type", ["noise", "x_start"])
def test_nothing_is_read_on_the_host_between_steps(model_type, method):
    for ns in (LINEAR, NoiseScheduleVP(betas=BETAS)):
        for x0_fn, xt_fn in ((None, None), ("dynamic_thresholding", None), (None, lambda x, t, step: x * (1 + t))):
            x = start(dtype=torch.float32)
            model = Watched(tuple(x.shape), 7)
            solver = DPM_Solver(model_wrapper(model, ns, model_type), ns, "dpmsolver++", x0_fn, xt_fn)
            with model.region:
                solver.sample(x, 6, method=method, denoise_to_zero=True, return_intermediate=True)
            assert model.calls == 7


def test_add_noise():
    solver, x = DPM_Solver(smooth, LINEAR), start(dtype=torch.float32)
    t = torch.tensor([0.2, 0.7])
    torch.manual_seed(0)
    noisy = solver.add_noise(x, t)
    torch.manual_seed(0)
    z = torch.randn(2, *x.shape)
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1, 1) for f in (LINEAR.marginal_alpha, LINEAR.marginal_std))
    torch.testing.assert_close(noisy, alpha * x + sigma * z)
    torch.testing.assert_close(solver.add_noise(x, t[1:], z[1:]), noisy[1])


def test_modules_keep_their_mode_and_half_precision_its_dtype():
    class Network(torch.nn.Module):
        def forward(self, x, t):
            assert self.training
            return torch.tanh(x)

    network = Network()
    for model_fn in (network, model_wrapper(network, LINEAR)):
        x = DPM_Solver(model_fn, LINEAR).sample(start(dtype=torch.bfloat16), steps=3)
        assert x.dtype == torch.bfloat16
    assert network.training
    with pytest.raises(NonFiniteError):
        DPM_Solver(lambda x, t: x * math.nan, LINEAR).sample(start())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "cosine"}, ValueError, "schedule must be one of discrete, linear, got 'cosine'"),
        ({}, ValueError, "needs either betas or alphas_cumprod, got neither"),
        ({"betas": BETAS, "alphas_cumprod": BETAS}, ValueError, "either betas or alphas_cumprod, got both"),
        ({"betas": torch.ones(3)}, ValueError, "every beta must lie in"),
        ({"schedule": "linear", "continuous_beta_0": 0.0}, ValueError, "0 < continuous_beta_0 <= continuous_beta_1"),
    ],
)
def test_schedule_errors(options, error, message):
    with pytest.raises(error, match=message):
        NoiseScheduleVP(**options)


def test_schedule_functions_take_tensors():
    with pytest.raises(TypeError, match="marginal_std: the argument must be a floating-point tensor, got float"):
        LINEAR.marginal_std(0.5)
    with pytest.raises(TypeError, match=r"inverse_lambda: .* got torch.int64"):
        LINEAR.inverse_lambda(torch.tensor(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be callable"),
        ({"noise_schedule": 3}, TypeError, "noise_schedule must be a NoiseScheduleVP, got int"),
        ({"model_type": "x0"}, ValueError, "model_type must be one of noise, x_start, v, score, got 'x0'"),
        ({"guidance_type": "free"}, ValueError, "guidance_type must be one of"),
        ({"guidance_type": "classifier"}, ValueError, "needs classifier_fn, got None"),
        ({"guidance_scale": "2"}, TypeError, "guidance_scale must be a number"),
        ({"guidance_type": "classifier-free", "unconditional_condition": BETAS, "guidance_scale": 2.0},
         ValueError, "needs condition, got None"),
    ],
)  # fmt: skip
def test_wrapper_errors(options, error, message):
    with pytest.raises(error, match=f"model_wrapper: .*{message}"):
        model_wrapper(**{"model": smooth, "noise_schedule": LINEAR} | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model_fn": None}, TypeError, "model_fn must be callable"),
        ({"noise_schedule": None}, TypeError, "noise_schedule must be a NoiseScheduleVP, got NoneType"),
        ({"algorithm_type": "ddim"}, ValueError, "algorithm_type must be one of"),
        ({"correcting_x0_fn": "clip"}, ValueError, "correcting_x0_fn must be callable, 'dynamic_thresholding' or None"),
        ({"correcting_xt_fn": "clip"}, TypeError, "correcting_xt_fn must be callable or None, got str"),
    ],
)
def test_solver_errors(options, error, message):
    with pytest.raises(error, match=f"DPM_Solver: {message}"):
        DPM_Solver(**{"model_fn": smooth, "noise_schedule": LINEAR} | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"method": "euler"}, ValueError, "method must be one of multistep, singlestep, singlestep_fixed, adaptive"),
        ({"skip_type": "karras"}, ValueError, "skip_type must be one of time_uniform, logSNR, time_quadratic"),
        ({"solver_type": "heun"}, ValueError, "solver_type must be one of dpmsolver, taylor"),
        ({"order": 4}, ValueError, "order must be 1, 2 or 3, got 4"),
        ({"order": 2.0}, TypeError, "order must be an integer"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2, "order": 3}, ValueError, "steps must be at least order = 3 with method='multistep', got 2"),
        ({"t_end": 0.0}, ValueError, "t_end must be a finite number .*above 0"),
        ({"t_start": 2.0}, ValueError, "t_start must be a finite number .*at most 1"),
        ({"t_start": 0.5, "t_end": 0.5}, ValueError, "t_start and t_end must differ, got 0.5 for both"),
        ({"method": "adaptive", "t_start": 0.5}, ValueError, "with method='adaptive', t_start must be 1.0, got 0.5"),
        ({"method": "adaptive", "solver_type": "taylor"}, ValueError, "adaptive', solver_type must be 'dpmsolver'"),
        ({"method": "adaptive", "return_intermediate": True}, ValueError, "return_intermediate must be False"),
        ({"method": "adaptive", "order": 1}, ValueError, "order must be 2"),
    ],
)  # fmt: skip
def test_sample_errors(options, error, message):
    def never(x, t):
        raise AssertionError

    with pytest.raises(error, match=message):
        DPM_Solver(never, LINEAR).sample(**{"x": start()} | options)


def test_more_errors_of_runs():
    with pytest.raises(ValueError, match="adaptive', correcting_xt_fn must be None"):
        DPM_Solver(smooth, LINEAR, correcting_xt_fn=lambda x, t, step: x).sample(start(), method="adaptive")
    with pytest.raises(ValueError, match=r"rising times .* exclude denoise"):
        DPM_Solver(smooth, LINEAR).inverse(start(), denoise_to_zero=True)
    with pytest.raises(ValueError, match="correcting_x0_fn returns must have the shape"):
        DPM_Solver(smooth, LINEAR, correcting_x0_fn=lambda x0, t: x0[:1]).sample(start())
    for method in ("multistep", "singlestep"):
        with pytest.raises(TypeError, match="correcting_xt_fn returns must be a tensor"):
            DPM_Solver(smooth, LINEAR, correcting_xt_fn=lambda x, t, step: None).sample(start(), method=method)
    with pytest.raises(ValueError, match=r"t must have shape \(n,\)"):
        DPM_Solver(smooth, LINEAR).add_noise(start(), torch.ones(2, 2))
    with pytest.raises(ValueError, match="noise must have shape"):
        DPM_Solver(smooth, LINEAR).add_noise(start(), torch.tensor([0.5]), start())
