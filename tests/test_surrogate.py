"""Paired differences by hand, and the Gaussian process over length configs against its formulas written out with numpy."""

import itertools
import math

import numpy as np
import pytest

from surrogate import LENGTH_SCALES, SIGNALS, TREND, paired_difference, smooth

POINTS = np.array([[1.0, 1.0, 1.0], [0.9, 0.8, 0.5], [0.9, 0.7, 0.5], [0.6, 0.5, 0.2], [0.5, 0.2, 0.1]])
VALUES = np.array([0.0, -3.0, -2.5, -9.0, -25.0])
ERRORS = np.array([0.0, 1.0, 0.5, 2.0, 3.0])


def kernel(x, scale, signal):
    """Entry by entry: coefficients of 1, dropped, dropped^2 with deviation TREND, and a squared exponential."""
    result = np.empty((len(x), len(x)))
    for i, j in itertools.product(range(len(x)), repeat=2):
        one, other = 1 - x[i], 1 - x[j]
        trend = TREND**2 * (1 + one @ other + (one**2) @ (other**2))
        own = 0.5**2 if i == j else 0.0
        result[i, j] = trend + own + signal**2 * np.exp(-((one - other) ** 2).sum() / (2 * scale**2))
    return result


def posterior(x, y, errors):
    """Mean and deviation by the inverse of the covariance, for the sizes with the greatest likelihood."""
    best = None
    for scale, signal in itertools.product(LENGTH_SCALES, SIGNALS):
        prior = kernel(x, scale, signal)
        covariance = prior + np.diag(errors**2 + 1e-6)
        inverse = np.linalg.inv(covariance)
        likelihood = -0.5 * y @ inverse @ y - 0.5 * np.linalg.slogdet(covariance)[1]
        if best is None or likelihood > best[0]:
            best = likelihood, prior @ inverse @ y, np.sqrt(np.diag(prior - prior @ inverse @ prior))
    return best[1:]


@pytest.mark.parametrize("errors", [ERRORS, ERRORS + 0.3, np.full(5, 5.0)])
def test_mean_and_deviation_are_those_of_the_closed_form(errors):
    means, deviations = smooth(POINTS, VALUES, errors)
    expected_means, expected_deviations = posterior(POINTS, VALUES, errors)
    assert means == pytest.approx(expected_means, abs=1e-3)
    assert deviations == pytest.approx(expected_deviations, abs=2e-3)


def test_values_without_error_stay_as_they_are():
    means, deviations = smooth(POINTS, VALUES, np.zeros(5))
    assert means == pytest.approx(VALUES, abs=1e-3) and deviations == pytest.approx(0, abs=2e-3)


def test_an_exact_value_stays_beside_noisy_ones():
    means, deviations = smooth(POINTS, VALUES, ERRORS)
    assert means[0] == pytest.approx(0, abs=1e-3) and deviations[0] < 2e-3
    assert (deviations[1:] < ERRORS[1:]).all()


def test_a_single_config_is_taken_as_observed():
    means, deviations = smooth(POINTS[1:2], VALUES[1:2], np.array([0.5]))
    assert means == pytest.approx(VALUES[1:2], abs=0.01) and deviations == pytest.approx(0.5, abs=0.01)


# ---- what it is for ------------------------------------------------------------------------------------------------


def truth(x):
    return -20 * ((1 - x) ** 2).sum(1) + np.sin(4 * x[:, 0])


def noisy(seed, count=80, error=4.0):
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(0.2, 1.0, (count, 3)))[:, ::-1].copy()
    return x, truth(x) + error * generator.standard_normal(count), np.full(count, error)


@pytest.mark.parametrize("seed", range(3))
def test_similar_configs_lend_each_other_what_they_were_asked(seed):
    x, values, errors = noisy(seed)
    means, _ = smooth(x, values, errors)
    raw, left = np.sqrt(((values - truth(x)) ** 2).mean()), np.sqrt(((means - truth(x)) ** 2).mean())
    assert left < raw / 2


@pytest.mark.parametrize("seed", range(3))
def test_the_deviation_says_how_far_the_mean_is_from_the_truth(seed):
    x, values, errors = noisy(seed)
    means, deviations = smooth(x, values, errors)
    assert (deviations < errors).all()
    assert np.mean(np.abs(means - truth(x)) < 2 * deviations) > 0.85


def influence(x, errors, place, on):
    """By how much the mean at `on` moves with the value at `place`."""
    moved = VALUES_OF_TEN.copy()
    moved[place] += 0.5
    return (smooth(x, moved, errors)[0] - smooth(x, VALUES_OF_TEN, errors)[0])[on] / 0.5


VALUES_OF_TEN = np.array([0.0, -1, -2, -4, -6, -9, -12, -15, -19, -23])


def test_a_far_config_hardly_counts_where_a_near_one_does():
    ladder = np.linspace(1, 0.1, 10)[:, None] * np.ones(3)
    ladder[1] = ladder[0] - 0.02
    errors = np.full(10, 1.0)
    errors[0] = 3.0
    assert abs(influence(ladder, errors, 7, 0)) < 0.2 * influence(ladder, errors, 1, 0)


def paired_of_five(differences):
    """The paired difference of a config that was asked as many of 5 questions."""
    full = np.array([100.0, 80.0, 60.0, 40.0, 0.0])[: len(differences)]
    return paired_difference(full + differences, full, whole=5)


def test_the_paired_difference_is_the_mean_over_the_questions_that_were_asked():
    assert paired_of_five([-10.0, -30.0])[0] == pytest.approx(-20.0)


def test_the_standard_error_is_that_of_a_sample_without_replacement_with_prior_questions():
    # Squares 10^2 + 10^2 and 8 prior questions of 20 points: (200 + 8 * 400) / 10, of 2 asked, 3 of 5 left to chance.
    assert paired_of_five([-10.0, -30.0])[1] == pytest.approx(math.sqrt(340 / 2 * 3 / 5))


def test_nothing_is_left_to_chance_once_all_questions_were_asked():
    assert paired_of_five([-10.0, -30.0, 0.0, 5.0, 5.0]) == pytest.approx((-6.0, 0.0))
