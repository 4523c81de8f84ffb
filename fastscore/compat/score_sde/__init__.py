"""Sampling of score_sde_pytorch (yang-song/score_sde_pytorch, commit cb1f359) on this engine: its names, its numbers.

``from fastscore.compat.score_sde import ...`` takes the place of imports from its ``sde_lib``, ``sampling``,
``likelihood``, ``controllable_generation`` and ``models.utils``. Under one `torch.manual_seed` the samples are the
published ones up to rounding: the prior is drawn on the CPU, what follows on the device, in the published order.
``model(x, labels)`` is the raw network.

What is known to be odd in the published code, and what is done here:

* float32 cancels in the standard deviation of VP and sub-VP, by 1e-4 at t = 1e-3: kept, as samples show it;
* the corrector of VP takes ``1 - beta_i`` for alpha, where the paper prints the cumulative product: kept;
* a PC sampler reports ``N (n_steps + 1)`` network calls whatever predictor and corrector are: kept, as it is reported;
* Langevin norms, and the error norm of the ODE solver, are taken over the whole batch: kept;
* inpainting and colorization start from the known image without noise, noise it to the time of the step before, and at
  the end take the noise out of the known part alone; colorization takes the red channel, where it means the gray
  coordinate, out of the prior: kept, as samples show it, and not in `fastscore.control`;
* the likelihood calls the network twice per evaluation: here once;
* `EulerMaruyamaPredictor` stops with probability_flow: works here;
* the correctors stop with sub-VP: work here, with ``alpha = exp(-beta(t) / N)``;
* the tables of VE are not found from times on a GPU: works here;
* N can be set after the tables were made for another: here it is read-only;
* samples that are not finite are returned: here they raise `fastscore.NonFiniteError`;
* a network stays in evaluation mode after sampling: here its mode comes back;
* times are rounded to float32 before they are turned into an index: here they are not, which can move one of the N
  steps to the neighboring index if N > 500 and eps = 1e-3, and none for eps = 1e-5.

Other predictors and correctors than the published ones, and other ODE methods than RK45, are refused.

Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv 2011.13456.
"""

from fastscore.compat.score_sde.controllable_generation import get_pc_colorizer, get_pc_inpainter
from fastscore.compat.score_sde.correctors import (
    AnnealedLangevinDynamics,
    Corrector,
    LangevinCorrector,
    NoneCorrector,
    get_corrector,
)
from fastscore.compat.score_sde.likelihood import get_likelihood_fn
from fastscore.compat.score_sde.predictors import (
    AncestralSamplingPredictor,
    EulerMaruyamaPredictor,
    NonePredictor,
    Predictor,
    ReverseDiffusionPredictor,
    get_predictor,
)
from fastscore.compat.score_sde.sampling import get_ode_sampler, get_pc_sampler, get_sampling_fn
from fastscore.compat.score_sde.score import get_score_fn
from fastscore.compat.score_sde.sde import SDE, VESDE, VPSDE, ReverseSDE, subVPSDE

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "AncestralSamplingPredictor",
    "AnnealedLangevinDynamics",
    "Corrector",
    "EulerMaruyamaPredictor",
    "LangevinCorrector",
    "NoneCorrector",
    "NonePredictor",
    "Predictor",
    "ReverseDiffusionPredictor",
    "ReverseSDE",
    "get_corrector",
    "get_likelihood_fn",
    "get_ode_sampler",
    "get_pc_colorizer",
    "get_pc_inpainter",
    "get_pc_sampler",
    "get_predictor",
    "get_sampling_fn",
    "get_score_fn",
    "subVPSDE",
]
