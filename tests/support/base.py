"""The checkout, and a run that takes seconds."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

# A network of some thousand weights and a few steps: enough for everything but good pictures.
TINY = [
    "model=convnet",
    "schedule=linear",
    "weighting=uniform",
    "hardware=cpu",
    "tracker=local",
    "sampler=ddim",
    "sampler.steps=2",
    "optimizer.lr=2e-4",
    "job.max_steps=6",
    "job.batch_size=8",
    "job.log_every=1",
    "job.save_every=2",
    "job.num_samples=4",
]


def without_replaced(words):
    """These words without those of TINY whose group a later word chooses, too: a command line may
    choose a group only once."""
    keys = [word.partition("=")[0] for word in words]
    return [
        word
        for number, word in enumerate(words)
        if word not in TINY or "." in keys[number] or keys[number] not in keys[number + 1 :]
    ]
