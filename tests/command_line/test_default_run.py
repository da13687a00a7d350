"""What `python run.py` costs: little enough for two minutes on any laptop."""

import hydra
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import CONF

LIMIT = 5e12  # floating-point operations, those of the previews included


def test_the_default_run_takes_5_tflop_at_most(data_dir):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [f"data_dir={data_dir}", "tracker=local"])
    job = build(OmegaConf.to_container(cfg.job, resolve=True), "job")
    x_0, t = torch.zeros(2, *job.shape), torch.tensor([3, 500])
    with FlopCounterMode(display=False) as training:
        job.loss(job.net, x_0, t, torch.randn_like(x_0), None).mean().backward()
    with FlopCounterMode(display=False) as sampling, torch.no_grad():
        job.net(x_0, t)
    seen = [n for n in range(1, job.max_steps + 1) if job.is_preview_step(n, job.max_steps)]
    drawn = len(seen) * job.num_samples * job.evaluations(job.sampler)
    trained = job.max_steps * job.batch_size
    flops = training.get_total_flops() / 2 * trained + sampling.get_total_flops() / 2 * drawn
    assert seen[-1] == job.max_steps
    assert 1e12 < flops <= LIMIT
