import pytest
import torch

from ddpm.training.intervals import due, rank_rows, total_steps
from ddpm.training.lr import LearningRate
from ddpm.training.step import by_time


def test_learning_rate_schedule():
    lr = LearningRate(2.0, 4, 10)
    assert [lr(n) for n in (0, 1, 2, 3, 9)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert lr(19) == pytest.approx(1.0)
    assert lr(99) == pytest.approx(0.2)
    assert LearningRate(2.0, 0, None)(10**6) == 2.0


def test_total_steps_is_the_smaller_limit():
    assert total_steps(100, None, 14.5) == 100
    assert total_steps(None, 2, 14.5) == 29
    assert total_steps(20, 2, 14.5) == 20


def test_intervals_of_steps_and_of_epochs():
    assert [s for s in range(1, 21) if due(s, 6)] == [6, 12, 18]
    assert [s for s in range(1, 31) if due(s, None, 1, 14.04)] == [15, 29]
    assert not any(due(s, None) for s in range(1, 100))
    assert [s for s in range(1, 13) if due(s, 5, 0.5, 8)] == [4, 5, 8, 10, 12]


def test_ranks_take_neighbouring_rows():
    assert [rank_rows(8, 2, rank, 2) for rank in range(2)] == [slice(0, 4), slice(4, 8)]
    with pytest.raises(ValueError, match="8, 12"):
        rank_rows(10, 2, 0, 2)


def test_losses_by_quarters_of_the_timesteps():
    t = torch.tensor([0, 249, 250, 999, 999])
    sums, counts = by_time(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), t, 1000)
    assert (sums.tolist(), counts.tolist()) == ([3, 4, 0, 24], [2, 1, 0, 2])
    assert by_time(torch.ones(3), torch.arange(3), 3)[1].tolist() == [1, 1, 1, 0]  # T below 4
