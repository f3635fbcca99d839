"""Statistics against known values, and by simulation of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.transfer.statistics import (
    Interval,
    equivalent,
    holm,
    mcnemar,
    paired_interval,
    sign_flip,
    t_interval,
    wilson,
)


def differences(gained: int, lost: int, n: int) -> np.ndarray:
    return np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 10), (81, 263), (597, 597), (9_050, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(correct: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    found = wilson(correct / n, n, confidence)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_textbook_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81/263 and 0/20.
    assert wilson(81 / 263, 263).low == pytest.approx(0.2553, abs=5e-5)
    assert wilson(81 / 263, 263).high == pytest.approx(0.3662, abs=5e-5)
    assert wilson(0.0, 20).high == pytest.approx(0.1611, abs=5e-5)


@pytest.mark.parametrize(("accuracy", "n"), [(0.5, 0), (1.1, 5), (-0.1, 5)])
def test_wilson_refuses_what_is_no_share(accuracy: float, n: int) -> None:
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        wilson(accuracy, n)


@pytest.mark.parametrize("accuracy", [0.02, 0.5, 0.97])
def test_wilson_covers(accuracy: float) -> None:
    """Averaged over the binomial distribution, the interval holds the truth about 95 times in 100."""
    n = 200
    correct = np.arange(n + 1)
    weight = stats.binom.pmf(correct, n, accuracy)
    inside = [wilson(c / n, n).low <= accuracy <= wilson(c / n, n).high for c in correct]
    assert 0.93 <= float(weight @ inside) <= 0.985


def test_t_interval_textbook_value() -> None:
    # n 5, mean 11.2, s 1.30384, t(0.975, 4) = 2.776
    found = t_interval([10, 10, 11, 12, 13])
    assert found is not None
    assert found.low == pytest.approx(11.2 - 2.776445 * 1.303840 / 5**0.5, abs=1e-5)
    assert found.high == pytest.approx(11.2 + 2.776445 * 1.303840 / 5**0.5, abs=1e-5)
    assert t_interval([0.9]) is None


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (1, 8, 0.0390625), (10, 10, 1.0)]
)
def test_mcnemar_known_values(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_mcnemar_textbook_table() -> None:
    # Agresti, Categorical Data Analysis, approval ratings: 86 and 150 discordant; z² = 17.36.
    assert mcnemar(86, 150) == pytest.approx(3.7e-5, rel=0.05)


def test_holm_textbook_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flip_lists_all_patterns_of_few_seeds() -> None:
    assert sign_flip(np.array([0.1, 0.2, 0.3])) == 2 / 8
    assert sign_flip(np.array([0.02] * 6)) == 2 / 64
    assert sign_flip(np.zeros(5)) == 1.0


def test_sign_flip_of_one_seed_is_mcnemar() -> None:
    # 0/1 differences: the flips are the binomial of McNemar's test.
    assert sign_flip(differences(40, 20, 500)) == pytest.approx(mcnemar(40, 20), abs=0.002)
    assert sign_flip(differences(9, 3, 500)) == pytest.approx(mcnemar(9, 3), abs=1e-12)


def test_sign_flip_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.3, 1.0, 12)
    expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values) == pytest.approx(expected.pvalue, abs=1e-9)


def test_sign_flip_is_never_zero() -> None:
    assert sign_flip(differences(400, 0, 500), flips=1000) == pytest.approx(1 / 1001)


def test_paired_interval_agrees_with_scipy() -> None:
    data = differences(30, 9, 200)
    expected = stats.bootstrap(
        (data,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    found = paired_interval(data)
    assert found.low == pytest.approx(expected.low, abs=0.006)
    assert found.high == pytest.approx(expected.high, abs=0.006)


def test_paired_interval_is_seeded_and_does_not_depend_on_the_order() -> None:
    data = differences(30, 9, 200)
    assert paired_interval(data, seed=3) == paired_interval(data[::-1].copy(), seed=3)
    many = np.random.default_rng(0).normal(size=50)
    assert paired_interval(many, seed=3) != paired_interval(many, seed=4)


def test_paired_interval_of_models_that_never_differ_is_not_a_point() -> None:
    found = paired_interval(np.zeros(100))
    # The rule of three, two-sided: 1 - 0.025 ** (1 / 100).
    assert found == Interval(pytest.approx(-0.03622, abs=1e-5), pytest.approx(0.03622, abs=1e-5))
    assert paired_interval(np.ones(100)).high == 1.0


@pytest.mark.parametrize(("gain", "loss", "n"), [(0.10, 0.04, 300), (0.02, 0.02, 600), (0.3, 0.1, 100)])
def test_paired_interval_covers(gain: float, loss: float, n: int) -> None:
    """In 400 simulated test sets the interval holds the true difference about 95 times in 100."""
    generator = np.random.default_rng(5)
    truth = gain - loss
    hits = 0
    for gained, lost, _ in generator.multinomial(n, [gain, loss, 1 - gain - loss], size=400):
        found = paired_interval(differences(gained, lost, n), resamples=2000)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_tests_keep_their_level() -> None:
    """Without a difference p < 0.05 happens at most about 5 times in 100."""
    generator = np.random.default_rng(6)
    tables = generator.multinomial(300, [0.05, 0.05, 0.9], size=500)
    assert np.mean([mcnemar(g, lo) < 0.05 for g, lo, _ in tables]) <= 0.06
    # Three seeds a side that share the images: differences in thirds.
    thirds = generator.choice([-2, -1, 0, 1, 2], (300, 200)) / 3
    flips = [sign_flip(row, flips=500, seed=seed) < 0.05 for seed, row in enumerate(thirds)]
    assert 0.02 <= np.mean(flips) <= 0.085


def test_equivalence_needs_enough_images() -> None:
    assert not equivalent(differences(4, 4, 100), 0.02)
    assert equivalent(differences(40, 40, 10_000), 0.02)
    assert not equivalent(differences(400, 40, 10_000), 0.02)
    assert equivalent(np.zeros(1000), 0.01)


def test_intervals_overlap() -> None:
    assert Interval(0.1, 0.2).overlaps(Interval(0.2, 0.3))
    assert not Interval(0.1, 0.2).overlaps(Interval(0.21, 0.3))
    assert Interval(0.1, 0.2).scaled(100) == Interval(10.0, 20.0)
