"""What the looks at all candidates together say of each: paired differences, and a Gaussian process over length configs.

Similar configs score alike, so that a few questions asked of each of many candidates say as much as many questions asked
of one (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 2.1, with the noise of each
observation known).
"""

import itertools
import math

import numpy as np
import torch

LENGTH_SCALES = (0.15, 0.3, 0.6)  # of configs whose lengths are fractions of the longest
SIGNALS = (0.5, 1.5, 4.0)  # standard deviation of what the trend leaves, in points
OWN = 0.5  # standard deviation of what a config has to itself, in points: neighbours never say all
TREND = 30.0  # standard deviation of its coefficients, in points
PRIOR_QUESTIONS, PRIOR_DEVIATION = 8, 20.0  # a difference that a first look never saw is not impossible


def paired_difference(scores: np.ndarray, full_scores: np.ndarray, whole: int) -> tuple[float, float]:
    """Mean of `scores` minus the full model's on the same questions (n), and its standard error, both in points.

    The error is that of a sample of n of `whole` questions without replacement: nothing is left to chance once all were
    asked.
    """
    seen, differences = len(scores), scores - full_scores
    squares = ((differences - differences.mean()) ** 2).sum() + PRIOR_QUESTIONS * PRIOR_DEVIATION**2
    error = math.sqrt(squares / (seen + PRIOR_QUESTIONS) / seen * (1 - seen / whole))
    return float(differences.mean()), error


def smooth(configs: np.ndarray, values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation (N) at `configs` (N, L), fractions in [0, 1].

    `values` (N) were observed there with standard errors `errors` (N), in points. The prior is a quadratic trend in the
    dropped fractions and a squared-exponential kernel, of a few sizes the most likely.
    """
    x, y, noise = (torch.from_numpy(array).double() for array in (configs, values, errors**2 + 1e-6))
    dropped = 1 - x
    terms = torch.cat([torch.ones(len(x), 1), dropped, dropped**2], dim=1)
    trend, distances, own = TREND**2 * terms @ terms.T, torch.cdist(x, x) ** 2, OWN**2 * torch.eye(len(x))
    kernels = (
        trend + own + signal**2 * torch.exp(-distances / (2 * scale**2))
        for scale, signal in itertools.product(LENGTH_SCALES, SIGNALS)
    )
    kernel = max(kernels, key=lambda kernel: _log_likelihood(kernel, noise, y))
    factor = torch.linalg.cholesky(kernel + torch.diag(noise))
    half = torch.linalg.solve_triangular(factor, kernel, upper=False)
    whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    variance = (kernel.diag() - (half**2).sum(0)).clamp(min=0)
    return (half.T @ whitened)[:, 0].numpy(), variance.sqrt().numpy()


def _log_likelihood(kernel: torch.Tensor, noise: torch.Tensor, y: torch.Tensor) -> float:
    """Log marginal likelihood, but for a constant."""
    factor = torch.linalg.cholesky(kernel + torch.diag(noise))
    whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    return (-0.5 * (whitened**2).sum() - factor.diag().log().sum()).item()
