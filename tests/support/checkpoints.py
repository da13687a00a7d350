"""A small training state, as checkpoints hold it."""

import torch


def state(step=1, size=4):
    weights = {"weight": torch.full((size,), float(step))}
    return {
        "step": step,
        "run_id": "0123abcd",
        "hparams": {
            "model": {"_target_": "x", "widths": [1, 2]},
            "data": {},
            "kind": "trains",
            "choices": {"job": "train"},
        },
        "model": weights,
        "ema": weights,
        "optimizer": {"state": {}, "param_groups": []},
    }
