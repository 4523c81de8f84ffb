"""The golden networks are those of the published runs: update rules written out here, with nothing of fastscore's
samplers in them, lead from the recorded start over the recorded states to the recorded end."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from fastscore.testing.golden import golden_cond_fn, golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
MIXTURE = load_mixture(FOLDER)
CLEAN = (torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def cases_of(manifest, prefix="", choose=lambda case: True):
    cases = [case for case in load_cases(FOLDER, manifest, prefix) if choose(case)]
    return pytest.mark.parametrize("case", cases, ids=str)


def network(case):
    """f(x, label) for a scalar label, the network, and the (alpha, sigma) that belong to a label."""
    model = golden_model(case, MIXTURE)
    model.record = True
    perturb = getattr(getattr(model, "model", model), "perturb", None)
    return lambda x, label: model(x, label.expand(len(x))), model, lambda label: perturb(label.double())


def assert_end(case, x):
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance


def assert_replayed(case, model, x, states=(), path_noise=0.0):
    """The end, the number of calls, and every state on the way that was recorded; `path_noise`: jitter of those."""
    assert_end(case, x)
    assert model.calls == case.scalars["model_calls"]
    assert set(model.inputs) == set(model.keep)
    path = [(model.inputs[i], case.tensors[f"call_x_{i}"]) for i in model.keep]
    path += list(zip(states, case.tensors.get("prev_samples", ()), strict=True))
    for ours, recorded in path:
        limit = max(case.tolerance * max(1.0, float(recorded.abs().max())), 3 * path_noise)
        assert (ours - recorded).abs().max() <= limit


def denoised_and_noise(prediction, h, x, alpha, sigma):
    if prediction == "score":
        prediction, h = "noise", -sigma * h
    if prediction == "noise":
        return (x - sigma * h) / alpha, h
    if prediction == "denoised":
        return h, (x - alpha * h) / sigma
    return alpha * x - sigma * h, alpha * h + sigma * x


# DDPM chains: DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12) and the ancestral posterior (Ho et al. 2020, eq. 7)


@cases_of("ddim", "ddim.generalized_steps", lambda case: case.args["eta"] == 0)
def test_ddim_of_ddim(case):
    f, model, perturb = network(case)
    x, labels = case.tensors["x"].double(), case.tensors["call_labels"]
    for label, following in zip(labels, [*map(perturb, labels[1:]), CLEAN], strict=True):
        denoised, noise = denoised_and_noise("noise", f(x, label), x, *perturb(label))
        x = following[0] * denoised + following[1] * noise
    assert_replayed(case, model, x)


@cases_of("diffusers", "df.DDIM.", lambda case: not case.args["step_kwargs"])
def test_ddim_of_diffusers(case):
    f, model, perturb = network(case)
    config, states, x = case.args["config"], [], case.tensors["x_init"].double()
    for label in case.tensors["timesteps"]:
        before = label - 1000 // case.args["num_inference_steps"]
        following = (
            perturb(before) if before >= 0 else CLEAN if config.get("set_alpha_to_one", True) else perturb(0 * label)
        )
        denoised, noise = denoised_and_noise(model.prediction, f(x, label), x, *perturb(label))
        x = (
            following[0] * (denoised.clamp(-1, 1) if config.get("clip_sample", True) else denoised)
            + following[1] * noise
        )
        states.append(x)
    assert_replayed(case, model, x, states)


@cases_of("guided", "gd.ddim_sample_loop", lambda case: case.args["eta"] == 0)
def test_ddim_of_guided(case):
    f, model, perturb = network(case)
    x, labels = case.tensors["noise"][0].double(), case.tensors["call_labels"]
    for label, following in zip(labels, [*map(perturb, labels[1:]), CLEAN], strict=True):
        alpha, sigma = perturb(label)
        denoised, _ = denoised_and_noise("noise", f(x, label)[:, :3], x, alpha, sigma)
        denoised = denoised.clamp(-1, 1) if case.args["clip_denoised"] else denoised
        noise = (x - alpha * denoised) / sigma
        if case.args["cond_fn"]:
            noise = noise - sigma * golden_cond_fn(case, MIXTURE)(x, label.expand(len(x)), case.tensors["y"])
            denoised = (x - sigma * noise) / alpha
        x = following[0] * denoised + following[1] * noise
    assert_replayed(case, model, x)


@cases_of("guided", "gd.p_sample_loop")
def test_ancestral_of_guided(case):
    f, model, perturb = network(case)
    prediction = {"EPSILON": "noise", "START_X": "denoised"}[case.args["model_mean_type"]]
    noise, labels, small = case.tensors["noise"].double(), case.tensors["call_labels"], None
    x = noise[0]
    for label, z, following in zip(labels, noise[1:], [*map(perturb, labels[1:]), CLEAN], strict=True):
        alpha, sigma = perturb(label)
        h = f(x, label)
        denoised, _ = denoised_and_noise(prediction, h[:, :3], x, alpha, sigma)
        denoised = denoised.clamp(-1, 1) if case.args["clip_denoised"] else denoised
        ratio = alpha / following[0]
        beta = 1 - ratio**2
        mean = (beta * following[0] * denoised + following[1] ** 2 * ratio * x) / sigma**2
        small = beta * following[1] ** 2 / sigma**2 if following[1] > 0 else small  # the last variance is that before
        fraction = {"fixed_small": 0.0, "fixed_large": 1.0}.get(case.args["model_var_type"], (h[:, 3:] + 1) / 2)
        variance = small ** (1 - fraction) * beta**fraction
        if case.args["cond_fn"]:
            mean = mean + variance * golden_cond_fn(case, MIXTURE)(x, label.expand(len(x)), case.tensors["y"])
        x = mean + (following[1] > 0) * variance.sqrt() * z
    # 1/alpha is 2e4 at the start of the cosine schedule: jitter of 1e-7 moves the recorded states by 1.8e-4
    assert_replayed(case, model, x, path_noise=1.8e-4 if case.args["noise_schedule"] == "cosine" else 0.0)


# DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); of first order DPM-Solver and DDIM coincide with it


def is_multistep(case):
    args = case.args
    plain = not args["correcting_x0_fn"] and args["solver_type"] == "dpmsolver" and args["method"] != "adaptive"
    second = args["algorithm_type"] == "dpmsolver++" and args["order"] == 2 and args["method"] == "multistep"
    return plain and (args["order"] == 1 or second) and "inverse" not in case.id


@cases_of("dpm", choose=is_multistep)
def test_multistep_of_dpm_solver(case):
    args = case.args
    f, model, perturb = network(case)
    x, labels = case.tensors["x_T"].double(), case.tensors["call_labels"]
    end = torch.tensor(1e-3 if args["noise_schedule"]["schedule"] == "linear" else 0.0)  # t_end = 1/N
    labels = labels if args["denoise_to_zero"] else torch.cat([labels, end[None]])
    torch.testing.assert_close(labels[-1], end, rtol=0, atol=1e-5)
    before, last = None, len(labels) - 2
    for i, (label, after) in enumerate(itertools.pairwise(labels)):
        (alpha, sigma), (alpha_after, sigma_after) = perturb(label), perturb(after)
        denoised, _ = denoised_and_noise(model.prediction, f(x, label), x, alpha, sigma)
        h = torch.log(alpha_after / sigma_after) - torch.log(alpha / sigma)
        lower = args["order"] == 1 or (i == last and args["lower_order_final"] and args["steps"] < 10)
        slope = 0.0 if before is None or lower else (denoised - before[0]) * h / before[1]
        x = sigma_after / sigma * x - alpha_after * torch.expm1(-h) * (denoised + slope / 2)
        before = (denoised, h)
    if args["denoise_to_zero"]:
        x, _ = denoised_and_noise(model.prediction, f(x, labels[-1]), x, *perturb(labels[-1]))
    assert_replayed(case, model, x)


# Euler and Heun on the flow dx/dsigma = (x - D)/sigma (Karras et al. 2022, eq. 3 and algorithm 1 without churn)


@cases_of("k", "k.euler.", lambda case: "s_churn" not in case.args)
def test_euler_of_k_diffusion(case):
    f, model, _ = network(case)
    x, sigmas = case.tensors["x"].double(), case.tensors["sigmas"].double()
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * (x - f(x, sigma)) / sigma
    assert_replayed(case, model, x)


@cases_of("edm", "edm.edm.", lambda case: case.args["S_churn"] == 0)
def test_heun_of_edm(case):
    f, model, _ = network(case)
    sigmas = torch.cat([case.tensors["call_labels"][::2], torch.zeros(1, dtype=torch.float64)])
    x = sigmas[0] * case.tensors["latents"].double()
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - f(x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        x = euler if after == 0 else x + (after - sigma) * (slope + (euler - f(euler, after)) / after) / 2
    assert_replayed(case, model, x)


@cases_of("edm", "edm.ablation.num_steps12.solvereuler")
def test_euler_of_edm(case):
    f, model, _ = network(case)
    sigmas = torch.cat([case.tensors["call_labels"], torch.zeros(1, dtype=torch.float64)])
    x = sigmas[0] * case.tensors["latents"].double()
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * (x - f(x, sigma)) / sigma
    assert_replayed(case, model, x)


@cases_of("diffusers", "df.EulerDiscrete")
def test_euler_of_diffusers(case):
    f, model, _ = network(case)
    x, sigmas, states = case.tensors["x_init"].double(), case.tensors["sigmas"].double(), []
    for label, sigma, after in zip(case.tensors["timesteps"], sigmas[:-1], sigmas[1:], strict=True):
        x = x + (after - sigma) * f(x / (1 + sigma**2).sqrt(), label)
        states.append(x)
    assert_replayed(case, model, x, states)


# consistency_models: its denoiser around the raw network, and the jumps of Song et al. 2023 (arXiv 2303.01469)


def karras_sigma(i, steps, sigma_min, sigma_max, rho):
    small, large = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.tensor((large + i / (steps - 1) * (small - large)) ** rho, dtype=torch.float64)


def jump(f, x, noise, ts, steps, t_min, t_max, rho):
    for i, j, z in zip(ts[:-1], ts[1:], noise, strict=True):
        after = karras_sigma(j, steps, t_min, t_max, rho).clamp(t_min, t_max)
        x = f(x, karras_sigma(i, steps, t_min, t_max, rho)) + (after**2 - t_min**2).sqrt() * z
    return x


@cases_of("cm", "cm.stochastic_iterative")
def test_jumps_of_consistency_models(case):
    f, model, _ = network(case)
    args = {name: case.args[name] for name in ("ts", "steps", "t_min", "t_max", "rho")}
    assert_replayed(case, model, jump(f, case.tensors["x"].double(), case.tensors["noise"].double(), **args))


@cases_of("cm", "cm.karras_sample", lambda case: case.args["sampler"] in ("euler", "onestep", "multistep"))
def test_karras_sample_of_consistency_models(case):
    f, model, _ = network(case)
    sigma_min, sigma_max, sigma_data, steps, rho = (
        case.args[name] for name in ("sigma_min", "sigma_max", "sigma_data", "steps", "rho")
    )

    def denoise(x, sigma):
        shifted = sigma - sigma_min if case.args["distillation"] else sigma
        h = f(x / (sigma**2 + sigma_data**2).sqrt(), 250 * sigma.log())
        c_out = shifted * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        return (sigma_data**2 / (shifted**2 + sigma_data**2) * x + c_out * h).clamp(-1, 1)

    noise = case.tensors["noise"].double()
    x = sigma_max * noise[0]
    if case.args["sampler"] == "onestep":
        x = denoise(x, torch.tensor(sigma_max, dtype=torch.float64))
    elif case.args["sampler"] == "multistep":
        x = jump(denoise, x, noise[1:], case.args["ts"], steps, sigma_min, sigma_max, rho)
    else:
        sigmas = [karras_sigma(i, steps, sigma_min, sigma_max, rho) for i in range(steps)]
        for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
    assert_replayed(case, model, x.clamp(-1, 1))


# Langevin: NCSNv2 (Song and Ermon 2020, algorithm 1), and the corrector of the VE pipeline of diffusers


@cases_of("ncsnv2", "ncsnv2.ald.")
def test_annealed_langevin_of_ncsnv2(case):
    f, model, _ = network(case)
    x, sigmas, noise = (case.tensors[name].double() for name in ("x", "sigmas", "noise"))
    n = case.args["n_steps_each"]
    for i, z in enumerate(noise):
        step = case.args["step_lr"] * (sigmas[i // n] / sigmas[-1]) ** 2
        x = x + step * f(x, torch.tensor(i // n)) + (2 * step).sqrt() * z
    if case.args["denoise"]:
        x = x + sigmas[-1] ** 2 * f(x, torch.tensor(len(sigmas) - 1))
    assert_replayed(case, model, x)


@cases_of("diffusers", "df.ScoreSdeVe")
def test_predictor_corrector_of_diffusers(case):
    f, model, _ = network(case)
    config, states = case.args["config"], []
    table, noise = case.tensors["discrete_sigmas"].double(), iter(case.tensors["noise"].double())
    x = config.get("sigma_max", 1348.0) * next(noise)
    for t, sigma in zip(case.tensors["timesteps"], case.tensors["sigmas"], strict=True):
        for _ in range(config.get("correct_steps", 1)):
            score, z = f(x, sigma), next(noise)
            norms = [value.flatten(1).norm(dim=1).mean() for value in (z, score)]
            step = 2 * (config.get("snr", 0.15) * norms[0] / norms[1]) ** 2
            x = x + step * score + (2 * step).sqrt() * z
        index = int(t * (len(table) - 1))
        variance = table[index] ** 2 - (table[index - 1] ** 2 if index else 0.0)
        x = x + variance * f(x, sigma) + variance.sqrt() * next(noise)
        states.append(x)
    assert_replayed(case, model, x, states)


# The SDEs of Song et al. 2021 (arXiv 2011.13456, eq. 30 to 33): drift factor and diffusion


def coefficients(sde, t):
    """(f, g) of dx = f x dt + g dw at t, [B, 1, 1, 1]."""
    t = t.reshape(-1, 1, 1, 1)
    if sde["cls"] == "VESDE":
        return 0 * t, marginal_std(sde, t) * math.sqrt(2 * math.log(sde["sigma_max"] / sde["sigma_min"]))
    beta = sde["beta_min"] + t * (sde["beta_max"] - sde["beta_min"])
    integral = t * sde["beta_min"] + t**2 * (sde["beta_max"] - sde["beta_min"]) / 2
    return -beta / 2, (beta * -torch.expm1(-2 * integral) if sde["cls"] == "subVPSDE" else beta).sqrt()


def marginal_std(sde, t):
    if sde["cls"] == "VESDE":
        return sde["sigma_min"] * (sde["sigma_max"] / sde["sigma_min"]) ** t
    variance = -torch.expm1(-t * sde["beta_min"] - t**2 * (sde["beta_max"] - sde["beta_min"]) / 2)
    return variance if sde["cls"] == "subVPSDE" else variance.sqrt()


def reverse_step(sde, model, x, t, h, z):
    """The Euler-Maruyama increment of the reverse SDE for t and h, [B]."""
    t, h = t.double(), h.double().reshape(-1, 1, 1, 1)
    f, g = coefficients(sde, t)
    return -h * (f * x - g**2 * model(x, t)) + h.sqrt() * g * z


def start_and_denoise(case, model):
    sde, eps = case.args["sde"], torch.full((2,), case.args["eps"], dtype=torch.float64)
    start = case.tensors["noise"][0].double() * sde.get("sigma_max", 1.0)

    def denoise(x):
        return x + marginal_std(sde, eps)[0] ** 2 * model(x, eps) if case.args["denoise"] else x

    return start, denoise


@cases_of("alexia", "fast.", lambda case: not case.args["adaptive"])
def test_euler_maruyama_of_score_sde_fast_sampling(case):
    _, model, _ = network(case)
    x, denoise = start_and_denoise(case, model)
    n, eps = case.args["sde"]["N"], case.args["eps"]
    times = torch.cat([torch.linspace(1, eps, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    for t, after, z in zip(times[:-1], times[1:], case.tensors["noise"][1:].double(), strict=True):
        x = x + reverse_step(case.args["sde"], model, x, t.expand(2), (t - after).expand(2), z)
    assert_replayed(case, model, denoise(x))


@cases_of("alexia", "fast.", lambda case: case.args["adaptive"])
def test_recorded_trials_of_score_sde_fast_sampling(case):
    """Stochastic Heun (Jolicoeur-Martineau et al. 2021, algorithm 1) over the recorded steps and rejections."""
    _, model, _ = network(case)
    x, denoise = start_and_denoise(case, model)
    trials = (case.tensors[name] for name in ("trial_t", "trial_h", "trial_t_after"))
    for t, h, after, z in zip(*trials, case.tensors["noise"][1:].double(), strict=True):
        first = reverse_step(case.args["sde"], model, x, t, h, z)
        second = reverse_step(case.args["sde"], model, x + first, t - h, h, z)
        x = torch.where((after != t).reshape(-1, 1, 1, 1), x + (first + second) / 2, x)
    assert_replayed(case, model, denoise(x))


@cases_of("score_sde_ode", "ode.", lambda case: not case.args["denoise"])
def test_probability_flow_of_score_sde(case):
    _, model, _ = network(case)
    sde, tensors = case.args["sde"], case.tensors
    start = tensors["z"] if "z" in tensors else tensors["noise"][0] * sde.get("sigma_max", 1.0)

    def drift(t, y):
        x, t = torch.from_numpy(y).reshape(start.shape).float(), torch.full((2,), t)  # float32, as the published one is
        std, (f, g) = marginal_std(sde, t), coefficients(sde, t)
        score = model(x, std) if sde["cls"] == "VESDE" else -model(x, 999 * t) / std.reshape(-1, 1, 1, 1)
        return (f * x - g**2 * score / 2).double().flatten().numpy()

    interval = (1.0, case.args["eps"])
    options = {"rtol": case.args["rtol"], "atol": case.args["atol"]}
    solution = solve_ivp(drift, interval, start.double().flatten().numpy(), method="RK45", **options)
    x = torch.from_numpy(solution.y[:, -1]).reshape(start.shape)
    assert_end(case, x if case.args["inverse_scaler"] == "identity" else (x + 1) / 2)
    # At 1e-5 the rounding of the published float32 drift of VP and sub-VP, divided by a small std, decides the steps.
    if sde["cls"] == "VESDE" or case.args["rtol"] > 1e-5:
        assert solution.nfev == case.scalars["nfe"]
        np.testing.assert_allclose(solution.t, case.tensors["ode_t"].numpy(), rtol=0, atol=1e-4)
