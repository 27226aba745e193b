"""One-class SVM, isolation forest, kernel density and nearest neighbours, on pixels, features or embeddings.

scikit-learn fits the first two once, in `prepare`; the result is kept in buffers and scored with tensors, so a
checkpoint holds no object of scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adbench.methods.base import Method
from adbench.networks import lenet
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.mlp import FeatureScaling
from adbench.streams import derived_seed
from adbench.types import Batch, Scores, UserError


class Shallow(Method):
    """A method that looks at all training rows at once and has no training step.

    Args:
        kind: data.kind; features are scaled, images are not.
        image_size: side of the images, or the number of features.
        scaling: of tabular data, see `FeatureScaling`.
        encoder: of images: null takes pixels, the name of a LeNet its embeddings, which pretraining should fill.

    Raises:
        UserError: tables are given an encoder, or there is no such encoder or scaling, or it takes another side.
    """

    has_maps = False
    #: Buffers whose size depends on the training rows.
    fitted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kind: str, image_size: int, scaling: str, encoder: str | None) -> None:
        super().__init__()
        if encoder is not None and kind == "tabular":
            raise UserError(f"method.encoder={encoder} takes images; tables need method.encoder=null")
        self.input: nn.Module = FeatureScaling(image_size, scaling) if kind == "tabular" else nn.Identity()
        self.name, self.image_size = encoder, image_size
        self.encoder: nn.Module = nn.Flatten() if encoder is None else lenet.encoder(encoder, image_size)
        self.encoder.requires_grad_(False)
        for name in self.fitted:
            self.register_buffer(name, torch.zeros(0))

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """What pretraining may fill: nothing where pixels or features are used."""
        if self.name is None:
            return {}
        decoder = lenet.decoder(self.name, self.image_size)
        width = lenet.embedding_width(self.name)
        return {"encoder": PretrainableEncoder(self.encoder, width, self.image_size, decoder=decoder)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.fitted:
            if prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def prepare(self, batches: Iterable[Batch]) -> None:
        images = [batch.image for batch in batches]
        if isinstance(self.input, FeatureScaling):
            self.input.fit(images)
        self.fit_rows(torch.cat([self.encoder(self.input(image)) for image in images]))

    def fit_rows(self, rows: Tensor) -> None:
        """Learn from the training rows, (n, E) float: scaled features, pixels or embeddings."""
        raise NotImplementedError

    def score_rows(self, rows: Tensor) -> Tensor:
        """(B, E) float -> (B,), higher for more anomalous rows."""
        raise NotImplementedError

    def score(self, image: Tensor) -> Scores:
        return Scores(self.score_rows(self.encoder(self.input(image))).float(), None)


def _squared_distance(rows: Tensor, others: Tensor) -> Tensor:
    """(B, E), (n, E) -> (B, n) float64, as a product: ONNX has no cdist."""
    rows, others = rows.double(), others.double()
    lengths = rows.square().sum(1, keepdim=True) + others.square().sum(1)
    return (lengths - 2 * rows @ others.T).clamp(min=0)


def _like(values: Any, rows: Tensor) -> Tensor:
    return torch.as_tensor(values, device=rows.device)


class OneClassSVM(Shallow):
    """Score = offset - Σ α_i k(x, x_i) with a Gaussian kernel: the negative of scikit-learn's decision function.

    Source: Schölkopf et al. 2001.

    Args:
        nu: bound of the share of training rows outside.
        gamma: k = exp(-gamma d²); "scale" is 1 / (E · variance of all entries).
        others: see `Shallow`.
    """

    fitted = ("vectors", "weights", "offset", "scale")

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        scaling: str = "min_max",
        encoder: str | None = None,
        nu: float = 0.1,
        gamma: float | str = "scale",
    ) -> None:
        super().__init__(kind, image_size, scaling, encoder)
        self.nu, self.gamma = nu, gamma

    def fit_rows(self, rows: Tensor) -> None:
        from sklearn.svm import OneClassSVM as Svm

        machine = Svm(nu=self.nu, gamma=self.gamma).fit(rows.double().cpu().numpy())
        self.vectors = _like(machine.support_vectors_, rows)
        self.weights = _like(machine.dual_coef_[0], rows)
        self.offset = _like(-machine.intercept_[0], rows)
        self.scale = _like(float(machine._gamma), rows)

    def score_rows(self, rows: Tensor) -> Tensor:
        return self.offset - torch.exp(-self.scale * _squared_distance(rows, self.vectors)) @ self.weights


class IsolationForest(Shallow):
    """Score in (0, 1): 2^(-mean depth at which trees of random cuts leave a row alone / the expected depth).

    Source: Liu et al. 2008, Eq. 2. Settings: Huang et al. 2021, supplement 6.5 (100 trees of 256 rows).

    Args:
        trees: how many, at least 1.
        rows_per_tree: how many training rows each sees, at most; at least 2.
        others: see `Shallow`.

    Raises:
        UserError: a number is too small.
    """

    fitted = ("feature", "threshold", "below", "depth")

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        scaling: str = "none",
        encoder: str | None = None,
        trees: int = 100,
        rows_per_tree: int = 256,
    ) -> None:
        super().__init__(kind, image_size, scaling, encoder)
        if trees < 1 or rows_per_tree < 2:
            raise UserError(
                f"method.trees is at least 1 and method.rows_per_tree at least 2, got {trees} and {rows_per_tree}"
            )
        self.trees, self.rows_per_tree = trees, rows_per_tree
        if isinstance(self.input, FeatureScaling):
            self.input.far = torch.finfo(torch.float32).max  # cuts compare, they square nothing

    def fit_rows(self, rows: Tensor) -> None:
        import numpy as np
        from sklearn.ensemble import IsolationForest as Forest

        forest = Forest(
            n_estimators=self.trees,
            max_samples=min(self.rows_per_tree, len(rows)),
            random_state=derived_seed(self.seed, "forest") % 2**32,
        ).fit(rows.float().cpu().numpy())
        trees = [estimator.tree_ for estimator in forest.estimators_]
        size = max(tree.node_count for tree in trees)
        feature, threshold = np.zeros((len(trees), size), np.int64), np.full((len(trees), size), np.inf)
        children, depth = np.zeros((len(trees), size, 2), np.int64), np.zeros((len(trees), size))
        for t, tree in enumerate(trees):
            inner = tree.children_left >= 0
            n = tree.node_count
            feature[t, :n], threshold[t, :n] = np.where(inner, tree.feature, 0), np.where(inner, tree.threshold, np.inf)
            # A leaf is its own child, so a row that has arrived stays however often it is sent on.
            children[t, :n, 0] = np.where(inner, tree.children_left, np.arange(n))
            children[t, :n, 1] = np.where(inner, tree.children_right, np.arange(n))
            for node in range(n):  # parents come before their children
                if inner[node]:
                    depth[t, children[t, node]] = depth[t, node] + 1
            depth[t, :n] += _expected_depth(tree.n_node_samples) * ~inner
        depth /= _expected_depth(np.array([min(self.rows_per_tree, len(rows))]))[0] or 1.0
        self.feature, self.threshold = _like(feature, rows), _like(threshold, rows)
        self.below, self.depth = _like(children, rows), _like(depth, rows)

    def score_rows(self, rows: Tensor) -> Tensor:
        rows = rows.double()
        node = torch.zeros(self.feature.shape[0], rows.shape[0], dtype=torch.long, device=rows.device)
        for _ in range(math.ceil(math.log2(max(self.rows_per_tree, 2)))):  # no tree is deeper
            value = rows.T.gather(0, self.feature.gather(1, node))
            right = (value > self.threshold.gather(1, node)).long()
            node = self.below.flatten(1).gather(1, 2 * node + right)
        return 2.0 ** -self.depth.gather(1, node).mean(0)


def _expected_depth(rows: Any) -> Any:
    """Mean depth of an unsuccessful search in a binary tree of so many rows: an array in, an array out.

    Source: Liu et al. 2008, Eq. 1.
    """
    import numpy as np

    rows = np.asarray(rows, dtype=float)
    many = 2 * (np.log(np.maximum(rows - 1, 1)) + np.euler_gamma) - 2 * (rows - 1) / np.maximum(rows, 1)
    return np.where(rows > 2, many, np.where(rows == 2, 1.0, 0.0))


class KernelDensity(Shallow):
    """Score = -log of the density, a mean of Gaussians around the training rows.

    Args:
        bandwidth: their standard deviation, > 0; "scott" takes n^(-1 / (E + 4)) times the root of the columns' mean
            variance.
        others: see `Shallow`.

    Raises:
        UserError: another bandwidth.
    """

    fitted = ("rows", "width")

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        scaling: str = "min_max",
        encoder: str | None = None,
        bandwidth: float | str = "scott",
    ) -> None:
        super().__init__(kind, image_size, scaling, encoder)
        if bandwidth != "scott" and not (isinstance(bandwidth, int | float) and bandwidth > 0):
            raise UserError(f"method.bandwidth is a number above 0, or scott; got {bandwidth}")
        self.bandwidth = bandwidth

    def fit_rows(self, rows: Tensor) -> None:
        n, dimensions = rows.shape
        self.rows = rows.clone()
        width = self.bandwidth
        if width == "scott":
            width = n ** (-1 / (dimensions + 4)) * rows.double().std(0).square().mean().sqrt().clamp_min(1e-12)
        self.width = torch.as_tensor(width, dtype=torch.float64, device=rows.device)

    def score_rows(self, rows: Tensor) -> Tensor:
        exponent = -_squared_distance(rows, self.rows) / (2 * self.width.square())
        n, dimensions = self.rows.shape
        constant = math.log(n) + dimensions * (0.5 * math.log(2 * math.pi) + self.width.log())
        return constant - torch.logsumexp(exponent, dim=1)


class NearestNeighbour(Shallow):
    """Score = mean distance to the k nearest training rows.

    Args:
        neighbours: k, at least 1; of fewer training rows all are taken.
        others: see `Shallow`.

    Raises:
        UserError: k is below 1.
    """

    fitted = ("rows",)

    def __init__(
        self,
        kind: str = "object",
        image_size: int = 32,
        scaling: str = "min_max",
        encoder: str | None = None,
        neighbours: int = 1,
    ) -> None:
        super().__init__(kind, image_size, scaling, encoder)
        if neighbours < 1:
            raise UserError(f"method.neighbours is at least 1, got {neighbours}")
        self.neighbours = neighbours

    def fit_rows(self, rows: Tensor) -> None:
        self.rows = rows.clone()

    def score_rows(self, rows: Tensor) -> Tensor:
        distance = _squared_distance(rows, self.rows).sqrt()
        return distance.topk(min(self.neighbours, len(self.rows)), largest=False).values.mean(1)
