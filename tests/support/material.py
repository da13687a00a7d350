"""Pictures and features that metrics can look at."""

import torch

from ddpm.features.base import Features
from ddpm.metrics.base import Material, Pictures


class Fake(Features):
    """Features that are there already; their softmax are the probabilities of the classes."""

    def __init__(self, name="fake", resize="none", num_classes=None):
        self.name, self.resize, self.num_classes = name, resize, num_classes

    def __call__(self, images):
        raise AssertionError("the features are there already")

    def log_probs(self, features):
        return features.log_softmax(1)

    def passport(self):
        return {"name": self.name, "resize": self.resize}


def pictures(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Pictures(images, torch.randn(n, d, generator=generator))


def material(n=100, train=300, held_out=200, d=4, real_d=None, features=None, sample_features=None):
    """Random pictures of one distribution; None: there are no such pictures."""
    samples = None if n is None else pictures(n, d, 0)
    if sample_features is not None:
        samples = Pictures(samples.images, sample_features)
    return Material(
        train=pictures(train, real_d or d, 1),
        held_out=None if held_out is None else pictures(held_out, real_d or d, 2),
        samples=samples,
        features=features or Fake(),
    )
