"""Frechet distance between two sets of feature vectors, from sums that can be added up in any order."""

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from slotzoo.errors import ShapeError


@dataclasses.dataclass(frozen=True)
class FeatureSums:
    """Count, sum and sum of outer products of feature vectors in float64: all that a Gaussian fit needs.

    Sums of two sets are `a + b`, so that batches, shards and processes can be joined.
    """

    count: int
    total: Float[np.ndarray, " feature"]
    outer: Float[np.ndarray, "feature feature"]

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "entry feature"]) -> "FeatureSums":
        """The sums of a batch of feature vectors."""
        x = np.asarray(features, np.float64)
        return cls(len(x), x.sum(0), x.T @ x)

    @classmethod
    def empty(cls, features: int) -> "FeatureSums":
        """The sums of no vector at all."""
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        return FeatureSums(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def gaussian(self) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, "feature feature"]]:
        """Mean and unbiased covariance. Raises ShapeError for fewer than two vectors."""
        if self.count < 2:
            raise ShapeError(f"a covariance needs at least two feature vectors, got {self.count}")
        mean = self.total / self.count
        covariance = (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return mean, (covariance + covariance.T) / 2


def frechet_distance(a: FeatureSums, b: FeatureSums) -> float:
    """`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` of the Gaussians fitted to two sets of features.

    With M a square root of S_a, `tr (S_a S_b)^(1/2)` is the sum of the square roots of the eigenvalues of the
    symmetric matrix `M^T S_b M`: real numbers throughout, also when there are fewer vectors than features.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a.gaussian(), b.gaussian()
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    cross = root.T @ cov_b @ root
    cross_trace = np.sqrt(np.maximum(np.linalg.eigvalsh((cross + cross.T) / 2), 0.0)).sum()
    difference = mean_a - mean_b
    distance = difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross_trace
    return float(max(distance, 0.0))


def frechet_from_features(
    a: Shaped[np.ndarray, "entry feature"], b: Shaped[np.ndarray, "other feature"]
) -> float:
    """Frechet distance of two sets of feature vectors, for any feature function of the caller."""
    return frechet_distance(FeatureSums.of(a), FeatureSums.of(b))
