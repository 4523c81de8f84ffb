"""Unchanged pipelines of diffusers with our schedulers: the images of the stock ones."""

import functools

import diffusers
import pytest
import torch

import fastscore
import fastscore.compat.diffusers as compat

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
TOLERANCE = 1e-5  # of images in [0, 1]
# An untrained network magnifies rounding: within 30 steps in float32 the stock images are 1e-4 off those of float64.
RUNS = pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 5), (torch.float64, 20)])


@functools.cache
def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model.to(dtype).eval()


def images(pipeline, scheduler, generator=None, **options):
    """What the pipeline draws with a scheduler; it must still be this one that is used."""
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = pipeline(batch_size=2, generator=generator, **{"output_type": "pt"} | options).images
    assert pipeline.scheduler is scheduler
    return torch.as_tensor(drawn)


def assert_same_images(pipeline, stock, **options):
    ours = getattr(compat, f"Fast{type(stock).__name__}").from_config(stock.config)
    expected, got = (images(pipeline, scheduler, **options) for scheduler in (stock, ours))
    error = float((got - expected).abs().max())
    print(f"{type(stock).__name__} {options}: {error:.1e}")
    assert error <= TOLERANCE
    assert float(expected.std()) > 0.05, "the images are flat"


@RUNS
@pytest.mark.parametrize("config", [{}, {"variance_type": "fixed_large", "clip_sample": False}], ids=str)
def test_ddpm_pipeline(config, dtype, steps):
    stock = diffusers.DDPMScheduler(**config)
    assert_same_images(diffusers.DDPMPipeline(network(dtype), stock), stock, num_inference_steps=steps)


@RUNS
@pytest.mark.parametrize("options", [{}, {"eta": 0.7}, {"eta": 1.0, "use_clipped_model_output": True}], ids=str)
def test_ddim_pipeline(options, dtype, steps):
    stock = diffusers.DDIMScheduler()
    assert_same_images(diffusers.DDIMPipeline(network(dtype), stock), stock, num_inference_steps=steps, **options)


@RUNS
@pytest.mark.parametrize("config", [{}, {"algorithm_type": "sde-dpmsolver++"}], ids=str)
def test_another_scheduler_in_the_ddpm_pipeline(config, dtype, steps):
    """It asks nothing of a scheduler but `set_timesteps`, `timesteps` and `step`."""
    stock = diffusers.DPMSolverMultistepScheduler(**config)
    assert_same_images(diffusers.DDPMPipeline(network(dtype), stock), stock, num_inference_steps=steps)


def test_score_sde_ve_pipeline():
    stock = diffusers.ScoreSdeVeScheduler(sigma_max=2.0, correct_steps=2)
    pipeline = diffusers.ScoreSdeVePipeline(network(), stock)
    assert_same_images(pipeline, stock, num_inference_steps=4, output_type="np")


def test_accelerated_network_and_scheduler_together():
    stock = diffusers.DDIMScheduler()
    pipeline = diffusers.DDIMPipeline(network(), stock)
    expected = images(pipeline, stock, num_inference_steps=5)
    fastscore.accelerate(network())
    try:
        got = images(pipeline, compat.FastDDIMScheduler.from_config(stock.config), num_inference_steps=5)
    finally:
        fastscore.restore(network())
    assert float((got - expected).abs().max()) <= TOLERANCE


def test_a_list_of_generators():
    stock = diffusers.DDPMScheduler()
    pipeline, drawn = diffusers.DDPMPipeline(network(), stock), []
    for scheduler in (stock, compat.FastDDPMScheduler.from_config(stock.config)):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        drawn.append(images(pipeline, scheduler, generators, num_inference_steps=5))
    assert float((drawn[1] - drawn[0]).abs().max()) <= TOLERANCE


def test_a_pipeline_is_saved_and_loaded(tmp_path):
    ours = compat.FastDDPMScheduler(variance_type="fixed_large")
    pipeline = diffusers.DDPMPipeline(network(), ours)
    assert pipeline.scheduler is ours
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is compat.FastDDPMScheduler
    assert loaded.scheduler.config.variance_type == "fixed_large"
    options = {"num_inference_steps": 4}
    assert torch.equal(images(pipeline, ours, **options), images(loaded, loaded.scheduler, **options))


def test_the_ddim_pipeline_replaces_what_it_is_made_with():
    """So the assignment is needed, as the documentation says."""
    pipeline = diffusers.DDIMPipeline(network(), compat.FastDDIMScheduler())
    assert type(pipeline.scheduler) is diffusers.DDIMScheduler
