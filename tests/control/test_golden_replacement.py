"""The published inpainting and colorization runs, replayed with their noise.

What is different on purpose is put back here or left out of the comparison. The published code starts from the known
image without noise (`start`); it noises the known part after a step to the time before it, which shows where a
corrector comes first, and not between two corrector steps at the same time (`Published`). Its final denoising has no
effect on the unknown part, so runs with `denoise` are compared to ours without; its known part ends at alpha(eps) times
the known image, ours at the known image.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, PCSampler, SubVPSDE
from fastscore.control import Colorization, Inpainting
from fastscore.noise import ReplayNoise
from fastscore.testing.golden import golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_control")
CLASSES = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}


class Published:
    """Mixed into a hook: noises to the time of the step before; not the first state, nor between two corrections."""

    corrections, before = 1, None

    def before_step(self, x, moment):
        if moment.index % (self.corrections + 1) in range(1, self.corrections):
            return None
        new = None if self.before is None else super().before_step(x, replace(moment, t=self.before))
        self.before = moment.t
        return new


class PublishedInpainting(Published, Inpainting):
    pass


class PublishedColorization(Published, Colorization):
    pass


def sampler_and_hook(case, denoise):
    args, sde_args = case.args, dict(case.args["sde"])
    n = sde_args.pop("N")
    sde_args.pop("T")
    sde = CLASSES[sde_args.pop("cls")](**sde_args)
    model = golden_model(case, load_mixture(FOLDER))
    model.record = True
    sampler = PCSampler(
        sde,
        model,
        args["predictor"].removesuffix("_sampling"),
        args["corrector"],
        snr=args["snr"],
        steps=n,
        corrector_steps=args["n_steps"],
        eps=args["eps"],
        denoise=denoise,
        convention=None if args["continuous"] else Convention("score", "noise_index", n),
    )
    tensors = case.tensors
    corrected = args["corrector"] != "none"
    if "mask" in tensors:
        hook = (PublishedInpainting if corrected else Inpainting)(tensors["data"], tensors["mask"].bool())
    else:
        hook = (PublishedColorization if corrected else Colorization)(tensors["gray"][:, :1])
    hook.corrections = args["n_steps"]
    return sampler, hook


def start(case, sde):
    """The first state as published: the known image itself, not noised, and the prior elsewhere.

    Colorization takes the first channel, where it means the first coordinate, out of the prior, and adds the rest.
    """
    tensors, prior = case.tensors, case.tensors["noise"][0] * sde.prior_std
    if "mask" in tensors:
        return torch.where(tensors["mask"].bool(), tensors["data"], prior)
    return tensors["gray"] + prior * torch.tensor([0.0, 1.0, 1.0]).reshape(3, 1, 1)


def recording(case):
    """The noise in the order in which we draw it: known part before a step, then the step."""
    rest, args = list(case.tensors["noise"])[1:], case.args
    corrections = args["n_steps"] if args["corrector"] != "none" else 0
    per_time = corrections + 3
    ours = []
    for i in range(0, len(rest), per_time):
        *steps, again, predicted, last = rest[i : i + per_time]
        known = [again, last]
        if "gray" in case.tensors:  # of the gray coordinate; we take the mean over channels
            known = [(z[:, :1] / 3**0.5).expand_as(z) for z in known]
        ours += [*steps, known[0], predicted]
        if corrections:
            ours.append(known[1])
    return ReplayNoise(ours[:-1] if corrections else ours)


def published_scale(case, x):
    return x if case.args["inverse_scaler"] == "identity" else (x + 1) / 2


def unknown(case, x):
    """Of an image on the published scale, what is not known."""
    if "mask" in case.tensors:
        return x[~case.tensors["mask"].bool()]
    return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unknown_part_equals_published(case):
    sampler, hook = sampler_and_hook(case, denoise=False)
    noise = recording(case)
    x = sampler.sample(start(case, sampler.sde), noise=noise, hooks=[hook])
    assert noise.position == len(noise.tensors)
    labels = torch.stack([label[0].double() for label in sampler.model.labels])
    torch.testing.assert_close(labels, case.tensors["call_labels"].double(), rtol=2e-6, atol=2e-5)
    error = float((unknown(case, published_scale(case, x)) - unknown(case, case.tensors["result"])).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    for call, state in sampler.model.inputs.items():
        expected = case.tensors[f"call_x_{call}"]
        assert float((state - expected).abs().max()) <= max(case.tolerance, 1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_known_part_and_final_denoising(case):
    """The known part is the known image itself, and the unknown one loses the last noise."""
    samples = {}
    for denoise in (False, True):
        sampler, hook = sampler_and_hook(case, denoise)
        noise = recording(case)
        x = samples[denoise] = sampler.sample(start(case, sampler.sde), noise=noise, hooks=[hook])
        if "mask" in case.tensors:
            mask = case.tensors["mask"].bool()
            assert torch.equal(x[mask], case.tensors["data"][mask])
        else:
            torch.testing.assert_close(x.mean(1), case.tensors["gray"].mean(1), rtol=0, atol=3e-7)
    last = sampler_and_hook(case, False)[0].plan().steps[-1].coefficients[-1]
    assert (last > 0) == ("ancestral" not in case.id or "vp" in case.id)
    left_out = unknown(case, samples[False]) - unknown(case, samples[True])
    torch.testing.assert_close(left_out, last * unknown(case, noise.tensors[-1]), rtol=0, atol=1e-6)
