"""The functions of k-diffusion on this engine: change the import, and the steps are tables and fused kernels.

    from fastscore.compat.k_diffusion import get_sigmas_karras, sample_dpmpp_2m

Signatures, order of the network calls, noise of the same torch seed and numbers are those of ``k_diffusion.sampling``
(the noise of the three SDE samplers excepted, see `sample_dpmpp_sde`); k-diffusion itself is not needed.
"""

from fastscore.compat.k_diffusion.sampling import (
    sample_dpm_2,
    sample_dpm_2_ancestral,
    sample_dpm_adaptive,
    sample_dpm_fast,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lms,
)
from fastscore.compat.k_diffusion.sigmas import (
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
)

__all__ = [
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]
