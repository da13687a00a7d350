import torch

from ddpm.randomness import Order, StepNoise, image_noise, mix

CPU = torch.device("cpu")


def batches(start=0, stop=10, rows=None, n=10, size=4, seed=0):
    return list(Order(n, seed, size, rows or slice(0, size), start, stop))


def test_every_image_once_an_epoch():
    flat = [i for batch in batches(stop=5, n=10, size=4) for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]


def test_order_can_start_anywhere():
    assert batches(start=3) == batches()[3:]


def test_ranks_split_the_same_batches():
    halves = zip(batches(rows=slice(0, 2)), batches(rows=slice(2, 4)), strict=True)
    assert [a + b for a, b in halves] == batches()


def test_a_batch_larger_than_the_data():
    (batch,) = batches(stop=1, n=3, size=7)
    assert len(batch) == 7
    assert set(batch) == {0, 1, 2}


def test_step_noise_depends_on_seed_and_step_alone():
    def noise():
        return StepNoise(0, 8, (1, 2, 2), 1000, CPU)

    a, b = noise(), noise()
    a(0, slice(0, 8))
    for x, y in zip(a(5, slice(0, 8)), b(5, slice(0, 8)), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(a(5, slice(0, 8))[1], a(6, slice(0, 8))[1])
    assert not torch.equal(
        a(5, slice(0, 8))[1], StepNoise(1, 8, (1, 2, 2), 1000, CPU)(5, slice(0, 8))[1]
    )


def test_step_noise_of_ranks_is_that_of_one_process():
    noise = StepNoise(0, 8, (1, 2, 2), 1000, CPU)
    whole = noise(3, slice(0, 8))
    parts = [noise(3, slice(0, 4)), noise(3, slice(4, 8))]
    for i in range(4):
        assert torch.equal(whole[i], torch.cat([parts[0][i], parts[1][i]]))


def test_distributions_of_step_noise():
    t, eps, flip, u = StepNoise(0, 4000, (1, 2, 2), 10, CPU)(0, slice(0, 4000))
    assert set(t.tolist()) == set(range(10))
    assert abs(eps.mean()) < 0.03
    assert abs(eps.std() - 1) < 0.03
    assert abs(flip.float().mean() - 0.5) < 0.04
    assert u.min() >= 0
    assert u.max() < 1
    assert abs((u < 0.1).float().mean() - 0.1) < 0.02


def test_noise_of_an_image_depends_on_its_seed_alone():
    alone, together = image_noise([37], CPU), image_noise([5, 37], CPU)
    x = torch.empty(2, 1, 2, 2)
    for _ in range(3):
        assert torch.equal(alone(x[:1])[0], together(x)[1])


def test_streams_do_not_collide():
    seeds = {mix(s, name, n) for s in range(20) for name in ("step", "order") for n in range(20)}
    assert len(seeds) == 800


def test_noise_drawn_for_several_steps_at_once_is_the_same_noise():
    """On a CPU; the numbers of an image must be a multiple of 16."""
    x = torch.zeros(2, 1, 4, 4)
    each, ahead = image_noise([5, 37], CPU), image_noise([5, 37], CPU, at_once=3)
    for _ in range(8):
        assert torch.equal(each(x), ahead(x))
