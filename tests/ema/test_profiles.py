"""Profiles of power-function averages, and their combinations."""

import pytest
import torch

from ddpm.ema.profiles import Profile, combination, exponent, length, products

PROFILES = [Profile(t, gamma) for t in (30, 70, 100) for gamma in (0.5, 7.0, 17.0)]
TAU = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 1000


def density(profile):
    values = (profile.gamma + 1) * TAU**profile.gamma / profile.steps ** (profile.gamma + 1)
    return torch.where(profile.steps >= TAU, values, 0)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.001, 0.015, 0.1, 0.28])
def test_length_is_the_standard_deviation_of_its_profile(sigma_rel):
    gamma = exponent(sigma_rel)
    assert length(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    # moments of (gamma + 1) tau^gamma on [0, 1]
    first, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (second - first**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)


def test_products_equal_numerical_integrals():
    curves = torch.stack([density(profile) for profile in PROFILES])
    expected = curves @ curves.T / 1000
    torch.testing.assert_close(products(PROFILES, PROFILES), expected, rtol=1e-4, atol=1e-9)


def test_combination_is_optimal_and_its_error_correct():
    wanted = Profile(100, 10.0)
    factors, error = combination(PROFILES, wanted)
    assert sum(factors) == pytest.approx(1)
    curves, target = torch.stack([density(profile) for profile in PROFILES]), density(wanted)

    def distance(x):
        return ((x @ curves - target).norm() / target.norm()).item()

    best = torch.tensor(factors, dtype=torch.float64)
    assert distance(best) == pytest.approx(error, rel=1e-3)
    for number in range(1, len(factors)):
        other = best.clone()
        other[0] += 1e-2
        other[number] -= 1e-2  # the sum stays 1
        assert distance(other) > distance(best)


def test_stored_profile_is_reconstructed_exactly():
    factors, error = combination(PROFILES, PROFILES[4])
    assert error < 1e-6
    assert factors == pytest.approx([float(i == 4) for i in range(9)], abs=1e-5)
