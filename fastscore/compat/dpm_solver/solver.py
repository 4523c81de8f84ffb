"""DPM-Solver and DPM-Solver++ by the signature of dpm-solver, on the tables of `fastscore.samplers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.compat.dpm_solver.schedule import NoiseScheduleVP
from fastscore.compat.dpm_solver.wrapper import Function, NoisePrediction
from fastscore.noise import PhiloxNoise
from fastscore.samplers.base import check_choice, check_count, check_number
from fastscore.samplers.dpm_adaptive import DPMSolverAdaptive
from fastscore.samplers.dpm_solver import DPMSolverSampler
from fastscore.samplers.dpm_solver_formulas import TARGETS, singlestep_orders
from fastscore.samplers.hooks import Hook, Moment
from fastscore.samplers.plan import Step
from fastscore.samplers.thresholding import DynamicThresholding
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["DPM_Solver"]

FEW_STEPS = 10  # below which the published code lowers the order of the last steps
METHODS = ("multistep", "singlestep", "singlestep_fixed", "adaptive")
SKIP_TYPES = ("time_uniform", "logSNR", "time_quadratic")
SOLVER_TYPES = {"dpmsolver": "midpoint", "taylor": "taylor"}
CorrectX0 = Callable[[Tensor, Tensor], Tensor]
CorrectXt = Callable[[Tensor, Tensor, int], Tensor]


class DPM_Solver:  # noqa: N801, the published name
    """DPM-Solver of a noise prediction.

    Args:
        model_fn: ``(x, t) -> noise`` for x (B, ...) and t (B,); the conversions of one made by `model_wrapper` cost
            nothing.
        noise_schedule: a `NoiseScheduleVP`.
        algorithm_type: ``"dpmsolver++"``: the clean image is integrated; ``"dpmsolver"``: the noise.
        correcting_x0_fn: ``(x0, t) -> x0`` with t 0-d, applied to every clean image that is predicted; with
            ``"dpmsolver"`` to that of denoise_to_zero alone. Or ``"dynamic_thresholding"``.
        correcting_xt_fn: ``(x, t, step) -> x``, applied to the state after every step; with method ``"multistep"`` also
            to the first one, as step 0, after the network has seen it.
        thresholding_max_val, dynamic_thresholding_ratio: of dynamic thresholding, see `DynamicThresholding`.

    Raises:
        TypeError, ValueError: for arguments outside what is listed.

    Source: Lu et al., arXiv 2206.00927 and arXiv 2211.01095.
    """

    def __init__(
        self,
        model_fn: Function,
        noise_schedule: NoiseScheduleVP,
        algorithm_type: str = "dpmsolver++",
        correcting_x0_fn: str | CorrectX0 | None = None,
        correcting_xt_fn: CorrectXt | None = None,
        thresholding_max_val: float = 1.0,
        dynamic_thresholding_ratio: float = 0.995,
    ) -> None:
        if not callable(model_fn):
            raise TypeError(f"DPM_Solver: model_fn must be callable as model_fn(x, t), got {type(model_fn).__name__}")
        if not isinstance(noise_schedule, NoiseScheduleVP):
            raise TypeError(
                f"DPM_Solver: noise_schedule must be a NoiseScheduleVP, got {type(noise_schedule).__name__}"
            )
        given = model_fn
        check_choice("DPM_Solver", "algorithm_type", algorithm_type, tuple(TARGETS))
        self.noise_schedule, self.algorithm_type = noise_schedule, algorithm_type
        if not isinstance(model_fn, NoisePrediction) or model_fn.noise_schedule is not noise_schedule:
            # a function: a module would be set to evaluation mode
            model_fn = NoisePrediction(lambda x, t: given(x, t), Convention("noise", "time"), noise_schedule)
        self.model = model_fn
        self._x0_hook: Hook | None = None
        if correcting_x0_fn == "dynamic_thresholding":
            self._x0_hook = DynamicThresholding(dynamic_thresholding_ratio, thresholding_max_val)
        elif callable(correcting_x0_fn):
            self._x0_hook = _CorrectX0(correcting_x0_fn)
        elif correcting_x0_fn is not None:
            raise ValueError(
                "DPM_Solver: correcting_x0_fn must be callable, 'dynamic_thresholding' or None, "
                f"got {correcting_x0_fn!r}"
            )
        if correcting_xt_fn is not None and not callable(correcting_xt_fn):
            raise TypeError(
                f"DPM_Solver: correcting_xt_fn must be callable or None, got {type(correcting_xt_fn).__name__}"
            )
        self.correcting_xt_fn = correcting_xt_fn

    def sample(
        self,
        x: Tensor,
        steps: int = 20,
        t_start: float | None = None,
        t_end: float | None = None,
        order: int = 2,
        skip_type: str = "time_uniform",
        method: str = "multistep",
        lower_order_final: bool = True,
        denoise_to_zero: bool = False,
        solver_type: str = "dpmsolver",
        atol: float = 0.0078,
        rtol: float = 0.05,
        return_intermediate: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Follow the probability-flow ODE from t_start to t_end.

        Args:
            x: the state at t_start, (B, ...), left unchanged.
            steps: network calls (with ``"singlestep_fixed"`` rounded down to a multiple of order); ``"adaptive"``
                ignores it.
            t_start, t_end: by default 1 and ``1 / total_N``; ``"adaptive"`` starts at 1 alone.
            order: 1, 2 or 3; 2 or 3 with ``"adaptive"``.
            skip_type: times that are even in t (``"time_uniform"``), in sqrt(t) (``"time_quadratic"``) or in log-SNR
                (``"logSNR"``); ``"adaptive"`` ignores it.
            method: ``"multistep"``, ``"singlestep"``, ``"singlestep_fixed"`` or ``"adaptive"``, see `DPMSolverSampler`
                and `DPMSolverAdaptive`. With ``"adaptive"`` of order 3 the error of the first step is mostly rounding,
                and sets the length of the next: steps, and samples within the tolerance, are not the published ones.
            lower_order_final: with ``"multistep"`` and fewer than 10 steps, the order falls to 1 at the end.
            denoise_to_zero: one more network call at t_end, whose clean image is the result.
            solver_type: ``"dpmsolver"`` or ``"taylor"``; ``"adaptive"`` takes the first alone.
            atol, rtol: tolerances of ``"adaptive"``.
            return_intermediate: also return the states on the way; not with ``"adaptive"``.

        Returns:
            The state at t_end (B, ...); with return_intermediate a pair with the list of the states after every step,
            which begins with the first state where the method is ``"multistep"``.

        Raises:
            TypeError, ValueError: for arguments outside what is listed, before any work is done.
            NonFiniteError: the result is not finite.
        """
        name, ns = "DPM_Solver.sample", self.noise_schedule
        _checks.is_state(name, "x", x)
        check_choice(name, "method", method, METHODS)
        check_choice(name, "solver_type", solver_type, tuple(SOLVER_TYPES))
        check_choice(name, "skip_type", skip_type, SKIP_TYPES)
        first = ns.T if t_start is None else t_start
        last = 1 / ns.total_N if t_end is None else t_end
        for argument, value in (("t_start", first), ("t_end", last)):
            check_number(name, argument, value, above=0.0, most=ns.T)
        if first == last:
            raise ValueError(f"{name}: t_start and t_end must differ, got {first!r} for both")
        if method == "adaptive":
            for argument, fits, accepted, got in (
                ("t_start", first == ns.T, ns.T, first),
                ("solver_type", solver_type == "dpmsolver", "dpmsolver", solver_type),
                ("return_intermediate", not return_intermediate, False, return_intermediate),
                ("correcting_xt_fn", self.correcting_xt_fn is None, None, self.correcting_xt_fn),
            ):
                if not fits:
                    raise ValueError(f"{name}: with method='adaptive', {argument} must be {accepted!r}, got {got!r}")
            return self._adaptive(x, last, order, denoise_to_zero, atol, rtol)
        check_count(name, "steps", steps, 1)
        check_count(name, "order", order, 1)
        if order > 3:
            raise ValueError(f"{name}: order must be 1, 2 or 3, got {order}")
        if steps < order and method != "singlestep":
            raise ValueError(f"{name}: steps must be at least order = {order} with method={method!r}, got {steps}")
        multistep = method == "multistep"
        if method == "singlestep_fixed":
            steps -= steps % order
        orders = [1] * steps if multistep else singlestep_orders(steps, order, method == "singlestep_fixed", False)
        states: list[Tensor] = []
        network, convention, hooks = self.model.network, self.model.convention, self._hooks
        if multistep and self.correcting_xt_fn is not None:
            network, convention, hooks = self._correcting_first(self.correcting_xt_fn, states), self._integrated, []
        elif multistep and return_intermediate:
            states.append(x.clone())
        sampler = DPMSolverSampler(
            ns.sde,
            network,
            steps=steps,
            order=order,
            method=method,
            algorithm=self.algorithm_type,
            solver_type=SOLVER_TYPES[solver_type],
            spacing=_times(ns.sde, skip_type, first, last, orders),
            lower_order_final=lower_order_final and steps < FEW_STEPS,
            denoise_to_zero=denoise_to_zero,
            convention=convention,
        )
        if self.correcting_xt_fn is not None:
            ends = [k for k, row in enumerate(sampler.plan().steps) if not row.stage]
            numbers = {k: i + multistep for i, k in enumerate(ends[: len(orders)])}
            hooks = [*hooks, _CorrectXt(self.correcting_xt_fn, numbers)]

        def keep(index: int, row: Step, state: Tensor) -> None:
            if not row.stage:
                states.append(state)

        result = sampler.sample(x, hooks=hooks, callback=keep if return_intermediate else None)
        assert isinstance(result, Tensor)
        if denoise_to_zero:
            result = self._corrected_end(result, last, len(orders) + multistep)
            states[-1:] = [result]
        return (result, states) if return_intermediate else result

    def inverse(
        self,
        x: Tensor,
        steps: int = 20,
        t_start: float | None = None,
        t_end: float | None = None,
        order: int = 2,
        skip_type: str = "time_uniform",
        method: str = "multistep",
        lower_order_final: bool = True,
        denoise_to_zero: bool = False,
        solver_type: str = "dpmsolver",
        atol: float = 0.0078,
        rtol: float = 0.05,
        return_intermediate: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """`sample` from data to noise: from t_start, by default ``1 / total_N``, to t_end, by default 1.

        Neither method ``"adaptive"`` nor denoise_to_zero is supported.
        """
        first = 1 / self.noise_schedule.total_N if t_start is None else t_start
        last = self.noise_schedule.T if t_end is None else t_end
        return self.sample(
            x,
            steps,
            first,
            last,
            order,
            skip_type,
            method,
            lower_order_final,
            denoise_to_zero,
            solver_type,
            atol,
            rtol,
            return_intermediate,
        )

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """``alpha_t x + sigma_t noise`` at every one of the times.

        Args:
            x: clean images (B, ...).
            t: times (n,).
            noise: standard normals (n, B, ...); by default drawn by torch's generator.

        Returns:
            (n, B, ...); (B, ...) for a single time.
        """
        name = "DPM_Solver.add_noise"
        _checks.is_state(name, "x", x)
        _checks.is_state(name, "t", t)
        if t.ndim != 1:
            raise ValueError(f"{name}: t must have shape (n,), got {tuple(t.shape)}")
        shape = (len(t), *x.shape)
        if noise is None:
            noise = torch.randn(shape, device=x.device)
        elif noise.shape != shape:
            raise ValueError(f"{name}: noise must have shape (n, B, ...) = {shape}, got {tuple(noise.shape)}")
        ns, column = self.noise_schedule, (-1, *[1] * x.ndim)
        alpha, sigma = ns.marginal_alpha(t).reshape(column), ns.marginal_std(t).reshape(column)
        noisy = alpha * x + sigma * noise
        return noisy.squeeze(0) if len(t) == 1 else noisy

    @property
    def _integrated(self) -> Convention:
        """Of a function that gives what the algorithm integrates."""
        return Convention(TARGETS[self.algorithm_type], "time")

    @property
    def _hooks(self) -> list[Hook]:
        """Of a run; the noise that is integrated by "dpmsolver" is not corrected."""
        return [self._x0_hook] if self._x0_hook is not None and self.algorithm_type == "dpmsolver++" else []

    def _correcting_first(self, correct: CorrectXt, states: list[Tensor]) -> Function:
        """What the algorithm integrates, at (x, t); corrects the state after the first call, and puts it in `states`.

        As a function of x alone it would change with the state.
        """
        begun = False

        def network(x: Tensor, t: Tensor) -> Tensor:
            nonlocal begun
            predicted = self._predicted(x, t)
            if not begun and len(x):
                begun = True
                x.copy_(_like("correcting_xt_fn", correct(x, t[0], 0), x))  # x is the state of the run itself
                states.append(x.clone())
            return predicted

        return network

    def _predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """What the algorithm integrates."""
        noise = self.model(x, t)
        if self.algorithm_type == "dpmsolver":
            return noise
        ns, shape = self.noise_schedule, (-1, *[1] * (x.ndim - 1))
        alpha, sigma = ns.marginal_alpha(t).reshape(shape), ns.marginal_std(t).reshape(shape)
        clean = ((x - sigma * noise) / alpha).to(x.dtype)
        return clean if self._x0_hook is None else self._corrected(self._x0_hook, clean, t)

    def _corrected(self, hook: Hook, clean: Tensor, t: Tensor) -> Tensor:
        new = hook.on_denoised(clean, clean, Moment(0, t.to(torch.float64), self.noise_schedule.sde, PhiloxNoise(0)))
        assert new is not None
        return new

    def _corrected_end(self, clean: Tensor, t: float, step: int) -> Tensor:
        """The result of denoise_to_zero, with what hooks have not corrected."""
        times = torch.full((len(clean),), t, dtype=clean.dtype, device=clean.device)
        if self._x0_hook is not None and self.algorithm_type == "dpmsolver":
            clean = self._corrected(self._x0_hook, clean, times)
        if self.correcting_xt_fn is not None and len(clean):
            clean = _like("correcting_xt_fn", self.correcting_xt_fn(clean, times[0], step), clean)
        return clean

    def _adaptive(self, x: Tensor, t_end: float, order: int, denoise_to_zero: bool, atol: float, rtol: float) -> Tensor:
        sampler = DPMSolverAdaptive(
            self.noise_schedule.sde,
            self.model.network,
            order=order,
            algorithm=self.algorithm_type,
            rtol=rtol,
            atol=atol,
            norm="max",
            eps=t_end,
            denoise=denoise_to_zero,
            convention=self.model.convention,
        )
        result = sampler.sample(x, hooks=self._hooks)
        assert isinstance(result, Tensor)
        return self._corrected_end(result, t_end, 0) if denoise_to_zero else result


class _CorrectX0(Hook):
    """A function (x0, t) of the clean image, with t 0-d."""

    def __init__(self, correct: CorrectX0) -> None:
        self.correct = correct

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> Tensor:
        if not len(denoised):
            return denoised
        return _like("correcting_x0_fn", self.correct(denoised, moment.t[0].to(denoised.dtype)), denoised)


class _CorrectXt(Hook):
    """A function (x, t, step) of the state after the rows that are numbered."""

    def __init__(self, correct: CorrectXt, numbers: dict[int, int]) -> None:
        self.correct, self.numbers = correct, numbers

    def after_step(self, x: Tensor, moment: Moment) -> Tensor | None:
        if moment.index not in self.numbers or not len(x):
            return None
        return _like("correcting_xt_fn", self.correct(x, moment.t[0].to(x.dtype), self.numbers[moment.index]), x)


def _like(argument: str, value: object, x: Tensor) -> Tensor:
    """What a function of the caller has returned in place of x."""
    _checks.is_state("DPM_Solver", f"what {argument} returns", value)
    assert isinstance(value, Tensor)
    value = value.to(x.dtype)
    _checks.matches("DPM_Solver", f"what {argument} returns", value, x)
    return value


def _times(sde: SDE, skip_type: str, first: float, last: float, orders: Sequence[int]) -> Tensor:
    """The ends of steps of these orders, and the points within them, float64 (sum(orders) + 1,).

    Even over the network calls; with "logSNR" over the steps, each of which is divided evenly.
    """
    if skip_type == "logSNR":
        inner = [(i + j / order) / len(orders) for i, order in enumerate(orders) for j in range(order)]
        u = torch.tensor([*inner, 1.0], dtype=torch.float64)
        begin, end = sde.log_snr(torch.tensor([first, last], dtype=torch.float64)).tolist()
        times = sde.inverse_log_snr(begin + u * (end - begin))
    else:
        u = torch.linspace(0.0, 1.0, sum(orders) + 1, dtype=torch.float64)
        power = 2 if skip_type == "time_quadratic" else 1
        begin, end = first ** (1 / power), last ** (1 / power)
        times = (begin + u * (end - begin)) ** power
    times[0], times[-1] = first, last  # to the last bit
    return times
