"""P-WAE, the patch-wise Wasserstein autoencoder (Zhang et al., "P-WAE: Generalized Patch-Wasserstein Autoencoder for
Anomaly Screening").

An image is cut into n x n tiles; one encoder sees each tile by itself. The codes of tile k are drawn to a prior of
their own, a head guesses from all codes in which order the tiles came, and a decoder rebuilds the whole image.

    Eq. 11           priors T(5, k, 1)              losses.pwae.student_t
    Eqs. 14, 15      HSIC bottleneck                losses.pwae.centred_gram, nhsic, hsic_bottleneck
    Eqs. 17, 18      sliced Wasserstein distance    losses.pwae.sliced_wasserstein
    Eq. 19           jigsaw puzzle                  losses.pwae.jigsaw, transforms.jigsaw
    Eq. 20           the sum                        PWAE.objective
    Eqs. 21 to 23    whole and tile errors          losses.pwae.tile_errors, two_threshold_score, summed_score
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adbench.losses import pwae as loss
from adbench.methods.base import OptimizerFactory, Schedule, SingleObjective, Terms, refuse_other_words, sides
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.pwae import CodeToMap, Decoder, TileEncoder, map_side
from adbench.transforms.geometry import tile, untile
from adbench.transforms.jigsaw import distant_permutations, permute_tiles, random_permutations
from adbench.types import Batch, Scores, UserError


def inverse_decay(rate: float, power: float) -> Schedule:
    """lr / (1 + rate * progress)^power. Source: P-WAE, section IV-A, a = 10 and b = 0.75."""
    return lambda progress: (1.0 + rate * progress) ** -power


OPTIMIZER = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
SCHEDULE = inverse_decay(rate=10.0, power=0.75)


class PWAE(SingleObjective):
    """Patch-wise Wasserstein autoencoder.

    Images whose sides n does not divide are extended by repeating their last row and column; what belongs to the
    extension is cut off again before any error is measured. Small images are enlarged before they are cut.

    Args:
        image_size: side of the images, or [H, W].
        grid: n, tiles along a side; 2 or 3.
        backbone: "resnet50", "resnet18", or another timm model whose last map has a stride of 32.
        width: multiplies the channels of the decoder and of a ResNet encoder.
        latent: d, numbers in the code of a tile.
        enlarge: whole factor by which images are enlarged in front of the encoder.
        normalize_input: apply ImageNet's mean and deviation inside the encoder.
        decoder: "released" or "padded", see networks.pwae.Decoder.
        decoder_input: "feature_map" (as released: no bottleneck) or "latent" (as the paper's Eq. 1 and Figure 6).
        output: "sigmoid" or "tanh".
        reconstruction: "squared" or "absolute_and_squared".
        lambda_0, lambda_1, lambda_2, lambda_3: weights of reconstruction, HSIC, divergence and jigsaw (Eq. 20, where
            lambda_0 is 1). A term of weight 0 is not computed; without the jigsaw there is no head and no shuffling.
        beta: weight of the dependence on the input (Eq. 15).
        prior: "student_t" or "gaussian".
        nu: the prior's degrees of freedom.
        location_step: distance of the priors of neighbouring tiles (tile k at k times it); 0 gives all tiles one prior.
        divergence: "sliced_wasserstein", or "kl" to Gaussian priors with a reparameterised posterior.
        projections: directions per tile and batch.
        divergence_root: distances of Eq. 18 as Eq. 9 defines them, in place of their squares.
        hsic: "normalised" (Eq. 14) or "alignment".
        hsic_epsilon: of Eq. 14.
        hsic_sigma: kernel width in units of sqrt(dimension), or "median".
        hsic_standardized: measure the input's dimensions in standard deviations over the training images.
        hsic_side: side to which the input of the HSIC term is pooled; None leaves it every pixel.
        permutations: |S| without the identity.
        permutation_choice: "distant" from each other, or "random".
        permutation_seed: of their choice.
        jigsaw_input: what the jigsaw head sees: "codes" as they are, or "standardised" by mean and deviation of the
            tiles' priors together, which are constants and say nothing of a tile's place.
        identity_share: share of training images whose tiles stay in place, a class of its own; None has no such class.
        error: "norm" (Eqs. 22, 23) or "released".
        tau_whole, tau_tile: thresholds of the normalised errors whose rule the score carries.
        optimizer, schedule: see `SingleObjective`.

    Raises:
        UserError: a value is out of its range, two values exclude each other, or the backbone does not fit.
    """

    permutations: Tensor  # (|S|, K) int64
    location: Tensor  # (K, 1)
    pooled_mean: Tensor  # (D,)
    pooled_std: Tensor  # (D,)
    maxima: Tensor  # (1 + K,)

    def __init__(
        self, image_size: int | Sequence[int] = 300, grid: Literal[2, 3] = 3,
        backbone: str = "resnet50", width: float = 1.0, latent: int = 128, enlarge: int = 1,
        normalize_input: bool = True, decoder: Literal["released", "padded"] = "released",
        decoder_input: Literal["feature_map", "latent"] = "feature_map", output: Literal["sigmoid", "tanh"] = "sigmoid",
        reconstruction: Literal["squared", "absolute_and_squared"] = "squared",
        lambda_0: float = 1.0, lambda_1: float = 0.01, lambda_2: float = 0.1, lambda_3: float = 1.0, beta: float = 0.1,
        prior: Literal["student_t", "gaussian"] = "student_t", nu: float = 5.0, location_step: float = 1.0,
        divergence: Literal["sliced_wasserstein", "kl"] = "sliced_wasserstein", projections: int = 50,
        divergence_root: bool = False, hsic: Literal["normalised", "alignment"] = "normalised",
        hsic_epsilon: float = 0.1, hsic_sigma: float | Literal["median"] = 5.0, hsic_standardized: bool = True,
        hsic_side: int | None = 30, permutations: int = 1000,
        permutation_choice: Literal["distant", "random"] = "distant", permutation_seed: int = 0,
        jigsaw_input: Literal["codes", "standardised"] = "standardised", identity_share: float | None = 0.7,
        error: Literal["norm", "released"] = "norm", tau_whole: float = 0.3, tau_tile: float = 0.8,
        optimizer: OptimizerFactory = OPTIMIZER, schedule: Schedule | None = SCHEDULE,
    ) -> None:  # fmt: skip
        super().__init__(optimizer, schedule)
        refuse_other_words(PWAE.__init__, locals())
        if divergence == "kl" and prior != "gaussian":
            raise UserError("method.divergence=kl has no closed form for a Student-t prior; add method.prior=gaussian")
        if identity_share is not None and not 0 <= identity_share <= 1:
            raise UserError(f"method.identity_share is a share from 0 to 1, or null, got {identity_share}")
        if hsic_side is not None and hsic_side < 1:
            raise UserError(f"method.hsic_side is a number of pixels from 1, or null for all of them, got {hsic_side}")
        self.image_size = height, width_px = sides(image_size)
        self.grid, self.tiles, self.enlarge = grid, grid * grid, enlarge
        self.below, self.right = -height % grid, -width_px % grid  # rows and columns added to fill the grid
        #: height and width in pixels of what the encoder sees
        self.tile_size = tuple(-(-side // grid) * self.enlarge for side in (height, width_px))
        self.latent = latent
        self.lambda_0, self.lambda_1, self.lambda_2, self.lambda_3 = lambda_0, lambda_1, lambda_2, lambda_3
        self.beta = beta
        self.prior, self.nu, self.divergence, self.projections = prior, nu, divergence, projections
        self.hsic, self.hsic_epsilon, self.hsic_sigma = hsic, hsic_epsilon, hsic_sigma
        self.hsic_standardized, self.hsic_side = hsic_standardized, hsic_side
        self.divergence_root, self.identity_share = divergence_root, identity_share
        self.reconstruction_form, self.error, self.tau_whole, self.tau_tile = reconstruction, error, tau_whole, tau_tile
        self._build_autoencoder(backbone, width, normalize_input, decoder, decoder_input, output)
        self._build_jigsaw(permutations, permutation_choice, permutation_seed)
        self._register_statistics(location_step, jigsaw_input)
        untouched = [f"decoder.{name}" for name in self.decoder.idle_biases()]
        if not (lambda_1 or lambda_2 or lambda_3 or self.code_to_map):
            untouched.append("encoder.mapper")
        self.gradient_free = tuple(untouched)

    def _build_autoencoder(
        self, backbone: str, width: float, normalize: bool, decoder: Literal["released", "padded"], decoder_input: str,
        output: Literal["sigmoid", "tanh"],
    ) -> None:  # fmt: skip
        height, width_px = self.image_size
        self.encoder = TileEncoder(backbone, width, self.latent, self.divergence == "kl", normalize)
        self.code_to_map = None
        if decoder_input == "latent":
            maps = [map_side(side) for side in self.tile_size]
            self.code_to_map = CodeToMap(self.latent, self.encoder.features, maps)
        size = [height + self.below, width_px + self.right]
        self.decoder = Decoder(self.encoder.features, width, size, decoder, output)

    def _build_jigsaw(self, number: int, choice: str, seed: int) -> None:
        """The permutations and the head that guesses them; neither at weight 0."""
        self.jigsaw_head = None
        if self.lambda_3:
            choose = {"distant": distant_permutations, "random": random_permutations}[choice]
            table = choose(number, self.tiles, seed)
            self.register_buffer("permutations", table if self.identity_share is not None else table[1:])
            self.jigsaw_head = nn.Linear(self.tiles * self.latent, len(self.permutations))

    def _register_statistics(self, location_step: float, jigsaw_input: str) -> None:
        """The priors' locations, and what `prepare` and `calibrate` fill."""
        location = location_step * torch.arange(1.0, self.tiles + 1)[:, None]  # (K, 1), by true tile
        self.register_buffer("location", location, persistent=False)
        self.jigsaw_mean, self.jigsaw_std = 0.0, 1.0
        if jigsaw_input == "standardised":
            self.jigsaw_mean, self.jigsaw_std = loss.prior_moments(self.prior, self.nu, location)
        values = 3 * (math.prod(self.image_size) if self.hsic_side is None else self.hsic_side**2)
        self.register_buffer("pooled_mean", torch.zeros(values if self.hsic_standardized else 0))
        self.register_buffer("pooled_std", torch.ones(values if self.hsic_standardized else 0))
        self.register_buffer("maxima", torch.zeros(1 + self.tiles))

    # -- forward --------------------------------------------------------------------------------------------------

    def cut(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 3, h, w): the tiles as the encoder sees them."""
        if self.below or self.right:
            image = F.pad(image, (0, self.right, 0, self.below), mode="replicate")
        if self.enlarge > 1:
            image = F.interpolate(image, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        return tile(image, (image.shape[-2] // self.grid, image.shape[-1] // self.grid))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the tiles' last maps (B, K, C, h, w) and codes (B, K, d), or (B, K, 2 d) for a posterior."""
        tiles = self.cut(image)
        maps, z = self.encoder(tiles.flatten(0, 1))
        return maps.unflatten(0, tiles.shape[:2]), z.unflatten(0, tiles.shape[:2])

    def _mosaic_to_image(self, maps: Tensor) -> Tensor:
        height, width = self.image_size
        return self.decoder(untile(maps, self.grid * maps.shape[-2], self.grid * maps.shape[-1]))[
            ..., :height, :width
        ].float()

    def _maps_of(self, z: Tensor) -> Tensor:
        assert self.code_to_map is not None
        return self.code_to_map(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    # -- training -------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        if not self.hsic_standardized:
            return
        rows = [self._pooled(batch.image) for batch in batches]
        pooled = torch.cat(rows).double()
        self.pooled_mean.copy_(pooled.mean(0))
        # A pixel that never changes by a grey level tells nothing, and must not be blown up to a deviation of 1.
        self.pooled_std.copy_(pooled.std(0, unbiased=False).clamp_min(1 / 255))

    def _pooled(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): X of Eq. 14."""
        return (image if self.hsic_side is None else F.adaptive_avg_pool2d(image, self.hsic_side)).flatten(1)

    def objective(self, batch: Batch) -> Terms:
        image = batch.image
        # The paper shuffles tiles, encodes them one by one and puts their maps back in place before decoding. Because
        # no tile sees another, the tiles can stay where they are and only the jigsaw head gets its codes shuffled.
        maps, encoded = self.encode(image)
        z, divergence = self._codes_and_divergence(encoded)
        if self.code_to_map is not None:
            maps = self._maps_of(z)
        x_hat = self._mosaic_to_image(maps)
        terms = {"reconstruction": self.lambda_0 * loss.reconstruction(image, x_hat, self.reconstruction_form)}
        if self.lambda_1:
            terms["hsic"] = self.lambda_1 * self._bottleneck(image, z)
        if divergence is not None:
            terms["divergence"] = self.lambda_2 * divergence
        if self.jigsaw_head is not None:
            terms["jigsaw"] = self.lambda_3 * self._jigsaw(z)
        return terms

    def _codes_and_divergence(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, K, d) codes and the () divergence from their priors, None at weight 0."""
        if self.divergence == "kl":
            mean, log_variance = encoded.float().chunk(2, dim=-1)
            noise = self.randn("posterior", len(mean), self.tiles, self.latent)
            z = mean + (0.5 * log_variance).exp() * noise
            return z, loss.gaussian_kl(mean, log_variance, self.location).sum() if self.lambda_2 else None
        z = encoded.float()
        if not self.lambda_2:
            return z, None
        with torch.autocast(z.device.type, enabled=False):
            directions = torch.randn(
                (self.tiles, self.projections, self.latent), generator=self.stream("directions"), device=z.device
            )
            directions = F.normalize(directions, dim=-1)
            prior = self._joined(self._prior("divergence prior", len(z)))
            return z, loss.sliced_wasserstein(self._joined(z), prior, directions, self.divergence_root).sum()

    def _prior(self, purpose: str, rows: int) -> Tensor:
        """(rows, K, d) samples of the priors of the K tiles."""
        if self.prior == "student_t":
            return loss.student_t(self.rand(purpose, rows, self.tiles, self.latent, 2), self.nu, self.location)
        return self.randn(purpose, rows, self.tiles, self.latent) + self.location

    def _bottleneck(self, image: Tensor, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            x = self._pooled(image)
            if self.hsic_standardized:
                x = (x - self.pooled_mean) / self.pooled_std
            variables = (self._joined(v.flatten(1)) for v in (x, z, self._prior("hsic prior", len(z))))
            gram_x, gram_z, gram_prior = (loss.centred_gram(v, self._kernel_width(v)) for v in variables)
            return loss.hsic_bottleneck(
                self._dependence(gram_prior, gram_z), self._dependence(gram_x, gram_z), self.beta
            ).float()

    def _kernel_width(self, variable: Tensor) -> float | Literal["median"]:
        return self.hsic_sigma if self.hsic_sigma == "median" else self.hsic_sigma * variable.shape[1] ** 0.5

    def _dependence(self, gram: Tensor, gram_z: Tensor) -> Tensor:
        if self.hsic == "alignment":
            return loss.kernel_alignment(gram, gram_z)
        return loss.nhsic(gram, gram_z, self.hsic_epsilon)

    def _jigsaw(self, z: Tensor) -> Tensor:
        stay, which = self.rand("permutation", len(z), 2).unbind(1)
        if self.identity_share is None:
            classes = (which * len(self.permutations)).long()
        else:
            other = 1 + (which * (len(self.permutations) - 1)).long()
            classes = torch.where(stay < self.identity_share, torch.zeros_like(other), other)
        # As printed, the priors' locations give the head inputs of a squared norm of 36,480, on which the paper's SGD
        # leaves the cross-entropy above that of guessing.
        shuffled = (permute_tiles(z, self.permutations[classes]) - self.jigsaw_mean) / self.jigsaw_std
        assert self.jigsaw_head is not None
        return loss.jigsaw(self.jigsaw_head(shuffled.flatten(1)).float(), classes)

    def _joined(self, rows: Tensor) -> Tensor:
        """The rows of all devices in the order of the joined batch: sorting and Gram matrices couple them.

        Only this device's rows carry a gradient, times the number of devices, so that the mean of the devices'
        gradients is the joined batch's.
        """
        if self.world == 1:
            return rows
        constant = rows.detach()
        gathered = self.all_gather(constant)
        assert isinstance(gathered, Tensor)  # as what is gathered is one
        parts = list(gathered.unbind(0))
        parts[self.rank] = constant + self.world * (rows - constant)
        return torch.stack(parts, dim=1).flatten(0, 1)

    # -- after training ---------------------------------------------------------------------------------------------

    def after_batch(self) -> None:
        if self.batches_seen == self.total_batches:  # here, so that the last checkpoint has them
            self.eval()
            self.maxima.zero_()
            with torch.no_grad():
                self.calibrate(self.training_rows())
            self.train()

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Raise the columns' maxima to these normal images'; called for the training rows, then the held-out ones."""
        for batch in batches:
            self.maxima.copy_(torch.maximum(self.maxima, self.tile_errors(batch.image).amax(0)))

    def score(self, image: Tensor) -> Scores:
        x_hat, _ = self._decoded(image)
        return self._scores(image, x_hat, loss.tile_errors(image, x_hat, self.grid, self.error))

    def test_scores(self, image: Tensor) -> Scores:
        x_hat, codes = self._decoded(image)
        errors = loss.tile_errors(image, x_hat, self.grid, self.error)
        return self._scores(image, x_hat, errors)._replace(extras=self._extra_scores(errors), codes=codes)

    def _scores(self, image: Tensor, x_hat: Tensor, errors: Tensor) -> Scores:
        return Scores(self._two_threshold(errors), (image - x_hat).abs().mean(1, keepdim=True))

    def _two_threshold(self, errors: Tensor) -> Tensor:
        maxima = torch.where(self.maxima > 0, self.maxima, torch.ones_like(self.maxima))
        return loss.two_threshold_score(errors, maxima, self.tau_whole, self.tau_tile)

    def _decoded(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the reconstruction (B, 3, H, W), and the codes (B, K, d)."""
        maps, encoded = self.encode(image)
        codes = encoded[..., : self.latent].float()
        return (self._mosaic_to_image(maps) if self.code_to_map is None else self.decode(codes)), codes

    def reconstruct(self, image: Tensor) -> Tensor:
        return self._decoded(image)[0].clamp(0, 1)

    def tile_errors(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1 + K): the error of the whole image, then of its tiles, not normalised."""
        return loss.tile_errors(image, self._decoded(image)[0], self.grid, self.error)

    def extra_scores(self, image: Tensor) -> dict[str, Tensor]:
        """Scores beside the main one, each (B,): the errors' sum, the whole image's alone, the worst tile's alone; with
        released errors also these, (B, 1 + K)."""
        return self._extra_scores(self.tile_errors(image))

    def _extra_scores(self, errors: Tensor) -> dict[str, Tensor]:
        tiles_only = errors.clone()
        tiles_only[:, 0] = 0
        worst_tile = self._two_threshold(tiles_only)
        scores = {"sum": loss.summed_score(errors), "whole": errors[:, 0], "worst_tile": worst_tile}
        return scores | ({"errors": errors} if self.error == "released" else {})

    def released_metrics(
        self, columns: Mapping[str, Tensor], label: Tensor, folder: Tensor
    ) -> Mapping[str, float | None]:
        """What the published program would print for a test set; empty without the `errors` of `extra_scores`.

        Args:
            columns: test scores by name; `errors` are (N, 1 + K).
            label: (N,) 0 normal, 1 anomalous.
            folder: (N,) int, the folder of each image.

        Returns:
            see `losses.pwae.released_metrics`.
        """
        if "errors" not in columns:
            return {}
        return loss.released_metrics(columns["errors"], label, folder, self.tau_whole, self.tau_tile)

    # -- pretraining ----------------------------------------------------------------------------------------------

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The backbone, up to the mean over its last map; the map itself goes to codes and decoder."""
        encoder = self.encoder
        return {
            "tiles": PretrainableEncoder(
                encoder.backbone,
                encoder.features,
                min(self.tile_size),
                encoder.normalized,
                windows=True,
                published=encoder.published,
            )
        }

    # -- codes ----------------------------------------------------------------------------------------------------

    def codes(self, image: Tensor) -> Tensor:
        """(B, K, d): the code of every tile (a posterior's mean)."""
        return self.encode(image)[1][..., : self.latent].float()

    @property
    def decodes(self) -> bool:
        """Whether `decode` can draw codes: only if the decoder is fed with them."""
        return self.code_to_map is not None

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, d) codes -> (B, 3, H, W).

        Raises:
            UserError: the decoder is fed with feature maps.
        """
        if self.code_to_map is None:
            raise UserError("this decoder is fed with feature maps, not codes; use method.decoder_input=latent")
        return self._mosaic_to_image(self._maps_of(codes))
