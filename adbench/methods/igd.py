"""IGD, the interpolated Gaussian descriptor (Chen et al. 2022).

An autoencoder whose normal embeddings are described by a center and a mean squared distance (E-step), and a critic that
guesses how far a decoded embedding was interpolated between two samples (M-step). One descriptor sees whole images
("global"), one sees 32-px patches ("local"); they share nothing but the batch, and their scores are added.

    Eq. 3           mu, sigma^2                       losses.igd.floored_center, floored_variance     IGD.e_step
    Eqs. 5, 8       Gaussian classifier l_h           losses.igd.gaussian
    Eq. 7           l_h + lambda_1 l_d + lambda_2 l_fg                                                 IGD.phases
    Eq. 10          critic l_d                        losses.igd.coefficient, zero_prediction
    Eqs. 11, 12     l_fg = l_r + lambda_3 d^2         losses.igd.reconstruction, zero_prediction
    Eqs. 13 to 15   image score                       losses.igd.scale_score, worst_patch              IGD.score
    Eqs. 16, 17     anomaly map                       losses.igd.residual_map                          IGD.score
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from adbench.losses import igd as loss
from adbench.losses.similarity import scale_weights
from adbench.methods.base import (
    Adversarial,
    OptimizerFactory,
    Phase,
    Schedule,
    Terms,
    polynomial,
    refuse_other_words,
    sides,
)
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.igd import Descriptor
from adbench.transforms.sliding import all_windows, chosen_windows, fold_windows
from adbench.types import Batch, Scores, UserError, chunk_sizes

PATCH, STRIDE = 32, 16
#: Weights of (l_r, l_h) in the released detection script. Source: released code, not the paper.
RELEASED_WEIGHTS = {"global": (0.1, 0.9), "local": (0.9, 0.1), "alone": (0.5, 0.5)}

TRUNKS = {"global": "resnet18", "local": "residual", "small": "residual"}
CRITIC_SIGMOID = {"global": False, "local": False, "small": False}
OPTIMIZERS = {
    "generator": partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9), weight_decay=1e-6),
    "critic": partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9)),
}
SCHEDULE = polynomial(0.9)


class _Decoded(NamedTuple):
    """One forward pass of one scale, which all its players share within a batch."""

    x: Tensor  # (n, 3, S, S) normalised
    z: Tensor  # (n, Z)
    x_hat: Tensor
    mixed: Tensor | None  # (n, Z) interpolated embeddings
    mixed_hat: Tensor | None
    alpha: Tensor | None  # (n, 1)
    zeta: Tensor | float | None  # (n, 1, 1, 1) or a number


class _Parts(NamedTuple):
    """What one scale finds in each image: its samples' terms (one of a whole image, n of its patches) and the map."""

    residual: Tensor  # (B, n) l_r
    anomalous: Tensor | None  # (B, n) l_h
    maps: Tensor  # (B, 1, S, S)


class IGD(Adversarial):
    """Interpolated Gaussian descriptor on one or two scales.

    Args:
        kind: data kind: object or texture (whole images and patches) or small (32-px images: one descriptor).
        image_size: side of the square images; 32, or a power of two from 64 on.
        scales: "global", "local" or both. Small images have the global one alone.
        latent: Z, size of the embedding.
        width: multiplies every number of channels (1 is the paper's), but for those of a timm model.
        trunks: scale ("global", "local", "small") -> "resnet18", "resnet18_cifar", "residual" or another timm model.
        decoder: "residual", as released, or "resnet18", a ResNet-18 reversed.
        rho: weight of the absolute error in l_r (Eq. 12).
        lambda_1, lambda_2: weights of the critic's and of the reconstruction's constraint (Eq. 7).
        lambda_3: weight of the adversarial term (Eq. 11).
        residual: "similarity" (Eq. 12) or "squared" (the MSE row of the ablation).
        pixels: "mean" over the image's pixels in l_r, or their "sum" as Eq. 12 is printed.
        gaussian: train and score with l_h (the GAC row of the ablation).
        interpolation: train with critic and interpolation (the INTER row).
        zeta: share of the image in the critic's blend (below Eq. 10), or "uniform" for U(0, 1) per sample.
        critic_first: the critic's turn comes first and reuses the decoder's pass of the batch, which is exact because
            the decoder has not moved. False: it comes last and decodes again, as released.
        critic_sigmoid: scale ("global", "local", "small") -> whether its critic ends in a sigmoid.
        critic_broadcast: compare every prediction with every alpha in the critic of whole images, as released; 32-px
            images and patches are compared one by one.
        pairing: x2 of a pair is the "next" sample of the batch, or its "mirror" image along the batch as released.
        bn_frozen: the decoder's batch normalisation keeps its initial statistics, as released.
        decoder_statistics: at test the decoder normalises as "trained", a running mean over plain and interpolated
            embeddings; or by statistics of "plain" ones, from a pass over the training rows after the last batch.
        freeze: hold a pretrained trunk fixed; one without pretraining always trains.
        e_step_every: epochs between two E-steps.
        e_steps: number of E-steps over the whole training, the one before it included; None goes by epochs.
        e_step_order: "center_first", or "variance_first" (with the old center, and floored per batch) as released.
        center_floor, variance_floor: see losses.igd.
        patches_per_image: patches drawn per image and batch for the local descriptor; None takes all.
        local_steps: steps of the local descriptor within a batch, among which the batch's patches are dealt out.
        e_step_patches: patches drawn per image in the E-step; None takes all.
        flip: mirror half of the training images left-right.
        fusion: "paper" (l_r + l_h, summed over scales) or "released" (weights 0.1, 0.9 and halves).
        fold: overlapping local maps are averaged ("mean") or added ("sum", as released).
        maps: "paper" (bilinear, Eq. 17's weights) or "released" (nearest, structural part unweighted).
        signed_error: score local patches with the signed mean error, as released.
        eval_patches: patches per forward pass while scoring.
        optimizers: "generator" (projection, decoder and an unfrozen trunk) and "critic" -> factory.
        schedule: learning-rate multiplier as a function of the budget spent.

    Raises:
        UserError: a value is out of its range, or the networks do not take this side or kind of images.
    """

    descriptors: MutableMapping[str, Descriptor]  # by scale; a ModuleDict, whose type does not say what it holds
    pretrained: Tensor  # () bool
    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self, kind: Literal["object", "texture", "small"] = "object", image_size: int | Sequence[int] = 256,
        scales: Sequence[Literal["global", "local"]] = ("global", "local"),
        latent: int = 128, width: float = 1.0, trunks: Mapping[str, str] = TRUNKS,
        rho: float = 0.15, lambda_1: float = 1.0, lambda_2: float = 1.0, lambda_3: float = 0.1,
        residual: Literal["similarity", "squared"] = "similarity", gaussian: bool = True, interpolation: bool = True,
        zeta: float | Literal["uniform"] = 0.2, critic_first: bool = True,
        critic_sigmoid: Mapping[str, bool] = CRITIC_SIGMOID, critic_broadcast: bool = False,
        pairing: Literal["next", "mirror"] = "next", bn_frozen: bool = False, freeze: bool = True,
        e_step_every: float = 10, e_steps: int | None = None,
        e_step_order: Literal["center_first", "variance_first"] = "center_first",
        center_floor: float = 0.1, variance_floor: float = 1.0,
        patches_per_image: int | None = None, e_step_patches: int | None = None, flip: bool = True,
        fusion: Literal["paper", "released"] = "paper", fold: Literal["mean", "sum"] = "mean",
        maps: Literal["paper", "released"] = "paper", signed_error: bool = False, eval_patches: int = 1024,
        optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS, schedule: Schedule | None = SCHEDULE,
        local_steps: int = 8, decoder: Literal["residual", "resnet18"] = "residual",
        pixels: Literal["mean", "sum"] = "mean", decoder_statistics: Literal["trained", "plain"] = "trained",
    ) -> None:  # fmt: skip
        side = _square(image_size)
        chosen = _scales(kind, side, scales)
        players = ["critic", "generator"] if critic_first else ["generator", "critic"]
        self._players = players = players if interpolation else ["generator"]
        super().__init__({f"{scale}_{player}": optimizers[player] for scale in chosen for player in players}, schedule)
        refuse_other_words(IGD.__init__, locals())
        if not 0 <= rho <= 1:
            raise UserError(f"method.rho weighs two errors and must be in [0, 1], got {rho}; the paper's is 0.15")
        if isinstance(local_steps, bool) or not isinstance(local_steps, int) or local_steps < 1:
            raise UserError(f"method.local_steps must be a whole number of at least 1, got {local_steps!r}")
        self.side, self.scales = side, chosen
        self.rho, self.lambda_1, self.lambda_2, self.lambda_3 = rho, lambda_1, lambda_2, lambda_3
        self.residual, self.gaussian, self.interpolation, self.zeta = residual, gaussian, interpolation, zeta
        self.critic_first, self.critic_broadcast, self.pairing = critic_first, critic_broadcast, pairing
        self.bn_frozen, self._freeze = bn_frozen, freeze
        self.e_step_every, self.e_steps, self.e_step_order = e_step_every, e_steps, e_step_order
        self.center_floor, self.variance_floor = center_floor, variance_floor
        self.patches_per_image, self.e_step_patches, self.local_steps = patches_per_image, e_step_patches, local_steps
        self.pixels, self.decoder_statistics, self.flip = pixels, decoder_statistics, flip
        self.fusion, self.fold, self.released_maps, self.signed_error = fusion, fold, maps == "released", signed_error
        self.eval_patches = eval_patches
        sizes = {"latent": latent, "width": width, "critic": interpolation, "decoder": decoder}
        self._build(trunks, critic_sigmoid, sizes)

    def _build(self, trunks: Mapping[str, str], critic_sigmoid: Mapping[str, bool], sizes: Mapping[str, Any]) -> None:
        """Each scale's networks and the windows of its similarity."""
        self.descriptors = cast(Any, nn.ModuleDict())
        self._window: dict[str, dict[str, Any]] = {}
        for scale in self.scales:
            name = "small" if self.side == PATCH else scale
            sigmoid = critic_sigmoid.get(name, critic_sigmoid[scale])
            side = PATCH if scale == "local" else self.side
            self.descriptors[scale] = Descriptor(side, trunk=trunks[name], sigmoid=sigmoid, **sizes)
            window, most = (3, 4) if side == PATCH else (11, 5)
            self._window[scale] = {"window": window, "weights": scale_weights(side, window, most)}
        self._decoded: dict[str, _Decoded] = {}
        self._features: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # moments of a frozen trunk's features, by scale
        self.frozen = False  # whether the trunks are held fixed
        self.register_buffer("pretrained", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.tensor(loss.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(loss.STD).view(1, 3, 1, 1), persistent=False)

    # -- the trunk and its pretraining --------------------------------------------------------------------------------

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The trunks that pretraining may fill, by scale."""
        return {
            scale: descriptor.pretrainable(self.normalize, windows=scale == "local")
            for scale, descriptor in self.descriptors.items()
        }

    def on_pretrained(self) -> None:
        """Called once the trunks are filled: they are held fixed from now on (with `freeze`)."""
        self.pretrained.fill_(True)
        self.frozen = self._freeze
        self._features.clear()
        for descriptor in self.descriptors.values():
            descriptor.encoder.trunk.requires_grad_(not self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> IGD:
        """Training mode, except that a frozen trunk and, with `bn_frozen`, the decoder stay in eval mode."""
        super().train(mode)
        for descriptor in getattr(self, "descriptors", {}).values():
            if self.frozen or self.bn_frozen:
                descriptor.encoder.eval()
            if self.bn_frozen:
                descriptor.decoder.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if bool(checkpoint["state_dict"]["pretrained"]):
            self.on_pretrained()  # before the optimizers are made

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ImageNet-normalised pixels of the same shape, in channels-last memory."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    # -- E-step -------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        self.e_step(batches, first=True)

    def rhythm(self, batches_per_epoch: int | None = None) -> int | None:
        if not self.gaussian:
            return None
        if self.e_steps is None:
            epoch = self.batches_per_epoch if batches_per_epoch is None else batches_per_epoch
            return max(1, round(self.e_step_every * epoch))
        assert self.total_batches is not None  # set when the training began
        return max(1, math.ceil(self.total_batches / self.e_steps))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        every = self.rhythm()
        if every is not None and self.batches_seen and self.batches_seen % every == 0:
            self.e_step(self.training_rows(), first=False)

    def e_step(self, batches: Iterable[Batch], *, first: bool) -> None:
        """Set each scale's center (Z,) and variance () from all training images. Source: Eq. 3.

        In eval mode, but for the first time with a trunk that starts from scratch: its running statistics say nothing
        yet, and their embeddings lie far from those of training, where l_h would be 1 without a slope.
        """
        if not self.gaussian:
            return
        with self._without_gradient(training=first and not self.frozen):
            for scale, (count, total, squares) in self._moments(batches).items():
                self._update_gaussian(self.descriptors[scale], count, total, squares, first)

    def _moments(self, batches: Iterable[Batch]) -> dict[str, list[Tensor]]:
        """Each scale's `losses.igd.moments`, of every batch: (n,), (n, Z), (n,).

        The features of a trunk that is held fixed never change, so the moments of any projection of them follow from
        their own, which one pass over the rows gives. (As released, the floor is on each batch, and drawn patches are
        others each time: these look again.)
        """
        once = [scale for scale in self.scales if self._fixed_features(scale)]
        missing = [scale for scale in self.scales if not (scale in once and scale in self._features)]
        moments: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {scale: [] for scale in self.scales}
        for number, batch in enumerate(batches if missing else ()):
            for scale in missing:
                encoder, x = self.descriptors[scale].encoder, self._e_step_input(scale, batch.image, number)
                network = encoder.trunk if scale in once else encoder
                y = torch.cat([network(piece) for piece in x.split(chunk_sizes(len(x), self.eval_patches))])
                if scale not in once:
                    moments[scale].append(loss.moments(y))
                else:  # one sum: a second moment has as many numbers as a layer has weights
                    sums: Sequence[Any] = moments[scale].pop() if moments[scale] else (0.0, 0.0, 0.0)
                    count, total, second = (a + b for a, b in zip(sums, loss.feature_moments(y), strict=True))
                    moments[scale].append((count, total, second))
        for scale in once:
            if moments[scale]:
                self._features[scale] = moments[scale][0]
            projection = self.descriptors[scale].encoder.projection
            moments[scale] = [loss.projected_moments(*self._features[scale], projection.weight, projection.bias)]
        return {scale: [torch.stack(part) for part in zip(*parts, strict=True)] for scale, parts in moments.items()}

    def _fixed_features(self, scale: str) -> bool:
        every_patch = scale == "global" or self.e_step_patches is None
        return self.frozen and every_patch and self.e_step_order == "center_first"

    def _update_gaussian(self, d: Descriptor, count: Tensor, total: Tensor, squares: Tensor, first: bool) -> None:
        center = loss.floored_center((total.sum(dim=0) / count.sum()).float(), self.center_floor)
        released = self.e_step_order == "variance_first"
        about = d.center if released and not first else center
        distances = loss.distance_sums(count, total, squares, about)
        variance = loss.floored_variance(distances, count, self.variance_floor, per_batch=released)
        if self.world > 1:  # every rank has seen all rows; their last digits may differ
            agreed = self.mean_over_ranks(torch.cat([center.double(), variance.view(1)]))
            center, variance = agreed[:-1], agreed[-1]
        d.variance.copy_(variance)
        d.center.copy_(center)

    def _e_step_input(self, scale: str, image: Tensor, number: int) -> Tensor:
        x = self.normalize(image)
        return self._patches(x, self.e_step_patches, f"e_step/{number}") if scale == "local" else x

    @contextmanager
    def _without_gradient(self, training: bool) -> Iterator[None]:
        before = self.training
        self.train(training)
        try:
            with torch.no_grad(), self.precision():
                yield
        finally:
            self.train(before)

    # -- M-step -------------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """Each scale's players: encoder and decoder ("generator") and, with interpolation, a critic."""
        phases = []
        for scale, d in self.descriptors.items():
            modules: dict[str, list[nn.Module]] = {
                "generator": [d.encoder, d.decoder], "critic": [] if d.critic is None else [d.critic]
            }  # fmt: skip
            objectives = {"generator": self.generator_objective, "critic": self.critic_objective}
            phases += [
                Phase(f"{scale}_{player}", modules[player], partial(objectives[player], scale))
                for player in self._players
            ]
        return phases

    def regions(self) -> list[nn.Module]:
        return [
            network
            for d in self.descriptors.values()
            for network in (d.encoder.trunk, d.decoder, d.critic)  # the trunk by itself: a step calls it alone
            if network is not None
        ]

    def optimizer_steps(self, k: int) -> int:
        return len(self._players) * sum(self.local_steps if scale == "local" else 1 for scale in self.scales)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        batch = self.admitted(batch, first=batch_idx == 0)
        if self.interpolation and len(batch.image) < 2:
            raise UserError("interpolation needs two images in a batch, got one; set data.batch_size=2 or more")
        image = self.normalize(self._augmented(batch.image))
        terms: Terms = {}
        for scale in self.scales:
            names = [f"{scale}_{player}" for player in self._players]
            steps = []
            for step, x in enumerate(self._samples(scale, image)):
                # Made before any player's turn, while all parameters require a gradient; critic and generator share it.
                self._decoded = {scale: self._decode(scale, x, step)}
                steps.append(self.turns(batch, names))
            terms |= {name: torch.stack([one[name] for one in steps]).mean() for name in steps[0]}
        self._decoded = {}
        self.record(terms)

    def after_batch(self) -> None:
        last = self.batches_seen == self.total_batches  # here, so that the last checkpoint has them
        if last and self.decoder_statistics == "plain" and not self.bn_frozen:
            self._take_plain_statistics(self.training_rows())

    def _take_plain_statistics(self, batches: Iterable[Batch]) -> None:
        """Set the decoders' running statistics to their means over the batches, of plain embeddings alone."""
        with self._without_gradient(training=False):
            norms = [
                module
                for descriptor in self.descriptors.values()
                for module in descriptor.decoder.modules()
                if isinstance(module, nn.BatchNorm2d)
            ]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean
                norm.train()
            for number, batch in enumerate(batches):
                for scale, d in self.descriptors.items():
                    x = self._e_step_input(scale, batch.image, number)
                    for piece in x.split(chunk_sizes(len(x), self.eval_patches)):
                        d.decoder(d.encoder(piece))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def _samples(self, scale: str, x: Tensor) -> Sequence[Tensor]:
        """What each step of a scale within a batch sees: the images, or a share of their patches in every step."""
        if scale == "global":
            return [x]
        patches = self._patches(x, self.patches_per_image, "patches")
        least = 2 if self.interpolation else 1
        if len(patches) < least * self.local_steps:
            raise UserError(
                f"{len(patches)} patches of a batch are too few for method.local_steps={self.local_steps}; "
                "take fewer steps, or more with method.patches_per_image"
            )
        return patches.tensor_split(self.local_steps)

    def _augmented(self, image: Tensor) -> Tensor:
        if not self.flip:
            return image
        mirrored = self.rand("flip", len(image), 1, 1, 1) < 0.5
        return torch.where(mirrored, image.flip(-1), image)

    def _decode(self, scale: str, x: Tensor, step: int = 0) -> _Decoded:
        """The pass of one step within a batch; what it draws is a function of seed, batch and step."""
        d, which = self.descriptors[scale], f"/{step}" if step else ""
        with torch.set_grad_enabled(not self.frozen):
            features = d.encoder.trunk(x)
        z = d.encoder.projection(features)
        x_hat = d.decoder(z)
        if not self.interpolation:
            return _Decoded(x, z, x_hat, None, None, None, None)
        alpha = self.rand(f"{scale}/alpha{which}", len(x), 1) / 2
        zeta = self.rand(f"{scale}/zeta{which}", len(x), 1, 1, 1) if self.zeta == "uniform" else self.zeta
        other = z.roll(1, 0) if self.pairing == "next" else z.flip(0)
        mixed = loss.interpolate(z, other, alpha)
        return _Decoded(x, z, x_hat, mixed, d.decoder(mixed), alpha, zeta)

    def generator_objective(self, scale: str, batch: Batch) -> Terms:
        """l_h + lambda_2 (l_r + lambda_3 mean d(x_hat_alpha)^2). Source: Eqs. 7, 8 and 11."""
        d, decoded = self.descriptors[scale], self._decoded[scale]
        terms = {"reconstruction": self.lambda_2 * self._residual(scale, decoded.x, decoded.x_hat).mean()}
        if self.gaussian:
            terms["gaussian"] = loss.gaussian(decoded.z, d.center, d.variance).mean()
        if self.interpolation:
            assert d.critic is not None and decoded.mixed_hat is not None
            fooled = loss.zero_prediction(d.critic(decoded.mixed_hat))
            terms["interpolation"] = self.lambda_2 * self.lambda_3 * fooled
        return terms

    def critic_objective(self, scale: str, batch: Batch) -> Terms:
        """lambda_1 l_d. Source: Eq. 10."""
        d, decoded = self.descriptors[scale], self._decoded[scale]
        assert d.critic is not None and decoded.mixed_hat is not None
        assert decoded.alpha is not None and decoded.zeta is not None
        x_hat, mixed_hat = decoded.x_hat.detach(), decoded.mixed_hat.detach()
        if not self.critic_first:
            with torch.no_grad():
                mixed_hat, x_hat = d.decoder(decoded.mixed), d.decoder(d.encoder(decoded.x))
        inputs = torch.cat([mixed_hat.float(), loss.blend(decoded.x, x_hat.float(), decoded.zeta)])
        of_mixed, of_blend = d.critic(inputs).chunk(2)  # normalised per sample: one pass equals two
        broadcast = self.critic_broadcast and d.side != PATCH
        return {
            "coefficient": self.lambda_1 * loss.coefficient(of_mixed, decoded.alpha, broadcast=broadcast),
            "blend": self.lambda_1 * loss.zero_prediction(of_blend),
        }

    def _residual(self, scale: str, x: Tensor, x_hat: Tensor, **options: Any) -> Tensor:
        if self.residual == "squared":
            return loss.squared_error(x, x_hat)
        return loss.reconstruction(
            x, x_hat, rho=self.rho, printed=self.pixels == "sum", **self._window[scale], **options
        )

    def _patches(self, x: Tensor, number: int | None, purpose: str) -> Tensor:
        """(B, 3, S, S) -> patches of all images, drawn anew for each image and purpose."""
        available = ((self.side - PATCH) // STRIDE + 1) ** 2
        order = self.rand(purpose, len(x), available).argsort(dim=1)
        return chosen_windows(x, PATCH, STRIDE, order[:, : number or available])

    # -- scores -------------------------------------------------------------------------------------------------------

    def score(self, image: Tensor) -> Scores:
        """Image scores (Eqs. 13 to 15) and anomaly maps (Eqs. 16 and 17) of (B, 3, S, S) images in [0, 1]."""
        return self._joined(self._parts(image))

    def test_scores(self, image: Tensor) -> Scores:
        parts = self._parts(image)
        return self._joined(parts)._replace(extras=self._extra_scores(parts))

    def _joined(self, parts: Mapping[str, _Parts]) -> Scores:
        share = 1 / len(parts) if self.fusion == "released" else 1
        image = share * torch.stack(list(self._scale_scores(parts, self.fusion).values())).sum(dim=0)
        maps = share * torch.stack([part.maps for part in parts.values()]).sum(dim=0)
        return Scores(image.float(), maps.float())

    def _scale_scores(self, parts: Mapping[str, _Parts], fusion: str) -> dict[str, Tensor]:
        """s of each scale, (B,): the whole image's, or the worst patch's."""
        scores = {}
        for scale, (residual, anomalous, _) in parts.items():
            weights = (1.0, 1.0)
            if fusion == "released" and self.gaussian:
                weights = RELEASED_WEIGHTS[scale if len(parts) == 2 else "alone"]
            scores[scale] = loss.worst_patch(loss.scale_score(residual, anomalous, weights))
        return scores

    def extra_scores(self, image: Tensor) -> dict[str, Tensor]:
        """Scores beside the main one, each (B,): both fusions, each scale's score, and each scale's l_r and l_h alone
        (the largest of an image's patches)."""
        return self._extra_scores(self._parts(image))

    def _extra_scores(self, parts: Mapping[str, _Parts]) -> dict[str, Tensor]:
        paper, released = (self._scale_scores(parts, fusion) for fusion in ("paper", "released"))
        scores = {"sum": torch.stack(list(paper.values())).sum(dim=0)}
        if self.gaussian:
            scores["released"] = torch.stack(list(released.values())).mean(dim=0)
        if len(parts) > 1:
            scores |= {f"s_{scale}": value for scale, value in paper.items()}
        for scale, (residual, anomalous, _) in parts.items():
            scores[f"l_r_{scale}"] = loss.worst_patch(residual)
            if anomalous is not None:
                scores[f"l_h_{scale}"] = loss.worst_patch(anomalous)
        return scores

    def extra_metrics(self, columns: Mapping[str, Tensor], label: Tensor) -> dict[str, float]:
        """Accuracy at the paper's threshold of 0.5 on the score as it is, of both fusions of `extra_scores`.

        Source: "Implementation Details". The sum of four terms in [0, 1) is not made for that threshold.

        Args:
            columns: (N,) test scores by name.
            label: (N,) int64, 0 normal, 1 anomalous.

        Returns:
            name -> share of right decisions, in [0, 1].
        """
        return {
            f"{name}_accuracy_at_0.5": ((columns[name] > 0.5).long() == label).double().mean().item()
            for name in ("sum", "released")
            if name in columns
        }

    def _parts(self, image: Tensor) -> dict[str, _Parts]:
        if image.shape[-2:] != (self.side, self.side):
            raise UserError(f"this IGD was built for {self.side}x{self.side} images, got {tuple(image.shape[-2:])}")
        x = self.normalize(image)
        return {scale: self._scale_parts(scale, x) for scale in self.scales}

    def _scale_parts(self, scale: str, x: Tensor) -> _Parts:
        d = self.descriptors[scale]
        samples = all_windows(x, PATCH, STRIDE) if scale == "local" else x
        chunks = [samples] if torch.compiler.is_exporting() else samples.split(self.eval_patches)
        parts = [self._sample_parts(scale, d, chunk) for chunk in chunks]
        number = ((self.side - PATCH) // STRIDE + 1) ** 2 if scale == "local" else 1
        columns = [residual for residual, _, _ in parts], [pixels for _, _, pixels in parts]
        residual, maps = (torch.cat(column).unflatten(0, (-1, number)) for column in columns)
        l_h = [anomalous for _, anomalous, _ in parts if anomalous is not None]
        anomalous = torch.cat(l_h).unflatten(0, (-1, number)) if self.gaussian else None
        if scale == "local":
            maps = fold_windows(maps.squeeze(2), self.side, self.side, STRIDE, average=self.fold == "mean")
        else:
            maps = maps.squeeze(1)
        return _Parts(residual, anomalous, maps)

    def _sample_parts(self, scale: str, d: Descriptor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """l_r (n,), l_h (n,) and map (n, 1, S, S) of whole images or patches."""
        x = x.contiguous(memory_format=torch.channels_last)
        z = d.encoder(x)
        x_hat = d.decoder(z).float()
        anomalous = loss.gaussian(z, d.center, d.variance) if self.gaussian else None
        if self.residual == "squared":
            return loss.squared_error(x, x_hat), anomalous, loss.grey((x - x_hat).square())
        levels = loss.pyramid(x, x_hat, **self._window[scale])
        residual = self._residual(scale, x, x_hat, signed=self.signed_error and scale == "local", levels=levels)
        pixels = loss.residual_map(
            x, x_hat, rho=self.rho, released=self.released_maps, printed=self.pixels == "sum", levels=levels,
            **self._window[scale],
        )  # fmt: skip
        return residual, anomalous, pixels

    # -- codes --------------------------------------------------------------------------------------------------------

    #: Codes can be drawn, by `decode`.
    decodes = True

    def codes(self, image: Tensor) -> Tensor:
        """(B, 1, Z): the embedding of each image; with patches alone, of each image's worst patch."""
        x = self.normalize(image)
        if self.scales == ["local"]:
            residual, anomalous, _ = self._parts(image)["local"]
            worst = loss.scale_score(residual, anomalous).argmax(dim=1)
            x = chosen_windows(x, PATCH, STRIDE, worst.unsqueeze(1))
        return self.descriptors[self.scales[0]].encoder(x).unsqueeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, 1, Z) -> (B, 3, H, W) in [0, 1]: whole images, or with patches alone a patch each."""
        return (self.descriptors[self.scales[0]].decoder(codes.squeeze(1)) * self.std + self.mean).clamp(0, 1)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def reconstruct(self, image: Tensor) -> Tensor | None:
        """The global descriptor's reconstruction, or the local one's patches averaged, in [0, 1]."""
        x = self.normalize(image)
        if "global" in self.scales:
            d = self.descriptors["global"]
            x_hat = d.decoder(d.encoder(x))
        else:
            d = self.descriptors["local"]
            parts = all_windows(x, PATCH, STRIDE).split(self.eval_patches)
            patches = torch.cat([d.decoder(d.encoder(part)) for part in parts]).unflatten(0, (len(x), -1))
            planes = [fold_windows(patches[:, :, c], self.side, self.side, STRIDE, average=True) for c in range(3)]
            x_hat = torch.cat(planes, dim=1)
        return (x_hat * self.std + self.mean).clamp(0, 1)


def _square(image_size: int | Sequence[int]) -> int:
    height, width = sides(image_size)
    if height != width:
        raise UserError(f"IGD takes square images, got {height}x{width}; set method.recipe.input to one side")
    return height


def _scales(kind: str, side: int, scales: Sequence[str]) -> list[str]:
    unknown = [scale for scale in scales if scale not in ("global", "local")]
    if unknown or not scales:
        raise UserError(f"method.scales lists global, local or both, got {list(scales)}")
    if kind not in ("object", "texture", "small"):
        raise UserError(f"IGD takes images (data.kind object, texture or small), got kind '{kind}'")
    if side == PATCH:
        if "global" not in scales:
            raise UserError(
                f"a {PATCH}-px image is one patch, so it has the global scale alone: method.scales=[global]"
            )
        return ["global"]
    return [scale for scale in ("global", "local") if scale in scales]
