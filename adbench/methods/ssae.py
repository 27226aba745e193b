"""SSAE: an autoencoder that learns to repair artificial defects, and scores an image by what it would repair.

Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection".

| equation | function |
|---|---|
| Table 1, network F | networks.dilated.DilatedAutoencoder |
| Eq. 1, first term; Eq. 4, first term | losses.ssae.normal_region |
| Eq. 1, second term | losses.ssae.corrupted_region |
| Eq. 4, second term | losses.ssae.amplification |
| Section 3.2, Figure 5 and Section 4.3, corrupted images | transforms.corruption |
| Eq. 2, Diff | `DIFFERENCES`: losses.ssae.squared_difference, ssim_difference (Section 4.1), logit_difference (ours) |
| Eq. 3, anomap; Eq. 13, avgmap; Eq. 14 | losses.ssae.mean_filter; `calibrate`; losses.ssae.discount_habitual_error |
| Section 3.1, image score | losses.ssae.total |
| Table 4, ensemble | the pixelwise maximum in `score` |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from adbench.losses import ssae as equations
from adbench.methods.base import OptimizerFactory, Schedule, SingleObjective, Terms, refuse_other_words, sides
from adbench.networks.dilated import STRIDE, DilatedAutoencoder
from adbench.streams import torch_stream
from adbench.transforms.corruption import (
    Alternately,
    Corruption,
    Cutout,
    Draws,
    Elastic,
    Occlusion,
    Rotated,
    Swap,
    Untouched,
    read_bank,
)
from adbench.transforms.symmetry import apply_symmetry, crop, symmetry_codes, undo_symmetry
from adbench.types import Batch, Scores, UserError

DIFFERENCES = {
    "squared": equations.squared_difference,
    "ssim": equations.ssim_difference,
    "logit": equations.logit_difference,
}
ELASTIC, OCCLUSION, CUTOUT, SWAP = Elastic(), Occlusion(), Cutout(), Swap()
OPTIMIZER = partial(torch.optim.Adam, lr=1e-4)


class Snapshot(nn.Module):
    """A copy of another module's weights and statistics, held in buffers: neither trained nor counted as parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, value in module.state_dict().items():
            self.register_buffer(name.replace(".", "/"), value.clone())

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        """Copy the module's weights and statistics as they are now."""
        for name, value in module.state_dict().items():
            self.get_buffer(name.replace(".", "/")).copy_(value)

    def give_back(self, module: nn.Module) -> None:
        """Put what was taken last into the module."""
        module.load_state_dict({name.replace("/", "."): value for name, value in self.named_buffers()})


class SSAE(SingleObjective):
    """One network per objective; with both objectives their maps are joined by the pixelwise maximum (Table 4).

    Args:
        image_size: side, or [height, width], of the images; divisible by 8.
        objectives: [1], [4] or [1, 4], numbers of the paper's equations.
        lambda_1, lambda_4: λ of either objective, in [0, 1].
        squared_norm: squared norms, or norms as printed.
        kernel, width: of the network, see `DilatedAutoencoder`.
        initialization: its first weights, "kaiming" or "mirrored" (`DilatedAutoencoder.start_linear`).
        corruption: what training does to clean images: elastic, occlusion, cutout, swap or none.
        elastic, occlusion, cutout, swap: these corruptions with their numbers.
        occlusion_probability: how often it takes the place of `corruption`.
        rotation_probability: how often the corrupted image is turned.
        foreign: folder of images that occluding shapes show; None shows procedural noise.
        symmetries: a group of `transforms.symmetry.SYMMETRIES` for augmentation.
        symmetric_maps: an anomaly map is the mean over these symmetries of the image, each turned back.
        extent_shares, extent_milestones: training crops have a side of `extent_shares[i]` of the image's once
            `extent_milestones[i]` of the budget is spent...
        extent_floor: ...and never one below this many pixels.
        difference: "squared", "ssim" or "logit".
        smoothing_k: side of the mean filter; None takes the odd number nearest to a 32nd of the image's side.
        smoothing_n: times that it is applied.
        average_exponent: t of Eq. 14; 0 switches the correction off.
        validate_every: training batches between two validations on corrupted held-out images.
        patience: batches without a better validation error after which the learning rate is halved; None: never.
        smallest_rate: below which it is not halved.
        tolerance_1, tolerance_4: by objective; the weights kept are the latest whose validation error is at most this
            multiple of the best. With more than 1, training of that network ends when the error stays above it for
            `patience` batches. None keeps the last weights.
        optimizer: factory from parameters to an optimizer.
        schedule: learning-rate multiplier as a function of the budget spent, in the place of the halving by patience.

    Raises:
        UserError: a value is out of its range, or the images do not fit the network or the mean filter.
    """

    networks: Sequence[DilatedAutoencoder]  # a ModuleList, whose type does not say what it holds
    kept: Sequence[Snapshot]
    bank: Tensor | None
    codes: Tensor  # (S,) int64, of the symmetries
    average_maps: Tensor  # (networks, 1, H, W)
    best_error: Tensor  # (networks,)
    best_at: Tensor  # (networks,) int64
    kept_at: Tensor  # (networks,) int64

    def __init__(
        self, *, image_size: int | Sequence[int] = 256, objectives: Sequence[int] = (1,),
        lambda_1: float = 0.5, lambda_4: float = 0.1, squared_norm: bool = True, kernel: int = 3, width: float = 1.0,
        initialization: Literal["kaiming", "mirrored"] = "kaiming",
        corruption: Literal["elastic", "occlusion", "cutout", "swap", "none"] = "elastic",
        elastic: Elastic = ELASTIC, occlusion: Occlusion = OCCLUSION, cutout: Cutout = CUTOUT, swap: Swap = SWAP,
        occlusion_probability: float = 0.0, rotation_probability: float = 0.0, foreign: str | None = None,
        symmetries: str = "none", symmetric_maps: bool = False,
        extent_shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        extent_milestones: Sequence[float] = (0.0, 0.15, 0.35, 0.6), extent_floor: int = 128,
        difference: Literal["squared", "ssim", "logit"] = "squared", smoothing_k: int | None = None,
        smoothing_n: int = 2, average_exponent: float = 1, validate_every: int = 500, patience: int | None = 2000,
        smallest_rate: float = 1e-6, tolerance_1: float | None = 1.0, tolerance_4: float | None = 1.1,
        optimizer: OptimizerFactory = OPTIMIZER, schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        super().__init__(optimizer, schedule)
        refuse_other_words(SSAE.__init__, locals())
        self.size = sides(image_size)
        self.weights = {1: lambda_1, 4: lambda_4}
        self.tolerance = {n: math.inf if t is None else t for n, t in ((1, tolerance_1), (4, tolerance_4))}
        self._check(objectives, extent_shares, extent_milestones)
        self.objectives, self.squared_norm = tuple(objectives), squared_norm
        self.networks = cast(Any, nn.ModuleList(DilatedAutoencoder(kernel, width) for _ in self.objectives))
        if initialization == "mirrored":
            for network in self.networks:
                network.start_linear()
        self.kept = cast(Any, nn.ModuleList(Snapshot(network) for network in self.networks))
        self._corruptions: dict[str, Any] = {
            "elastic": elastic, "occlusion": occlusion, "cutout": cutout, "swap": swap, "none": Untouched()
        }  # fmt: skip
        self._corruption_name = corruption
        self._occlusion_probability, self._rotation_probability = occlusion_probability, rotation_probability
        occludes = corruption == "occlusion" or occlusion_probability > 0
        bank = read_bank(foreign, max(self.size)) if foreign and occludes else None
        self.register_buffer("bank", bank, persistent=False)
        codes = symmetry_codes(symmetries, square=self.size[0] == self.size[1])
        self.register_buffer("codes", torch.tensor(codes), persistent=False)
        self._views = codes if symmetric_maps else (0,)
        self.extents = tuple(zip(extent_milestones, extent_shares, strict=True))
        self.extent_floor = extent_floor
        self._difference = DIFFERENCES[difference]
        self.smoothing_k = 2 * math.floor(min(self.size) / 64) + 1 if smoothing_k is None else smoothing_k
        self.smoothing_n, self.average_exponent = smoothing_n, average_exponent
        equations.mean_filter(torch.zeros(1, 1, *self.size), self.smoothing_k, self.smoothing_n)  # refuses misfits now
        self.validate_every, self.smallest_rate = validate_every, smallest_rate
        self.patience = math.inf if patience is None else patience
        self._register_selection()

    def _register_selection(self) -> None:
        """What validation and calibration fill, for each network."""
        count = len(self.objectives)
        self.register_buffer("average_maps", torch.zeros(count, 1, *self.size))
        self.register_buffer("best_error", torch.full((count,), math.inf))
        self.register_buffer("best_at", torch.zeros(count, dtype=torch.int64))  # of the best error, or the last halving
        self.register_buffer("kept_at", torch.full((count,), -1, dtype=torch.int64))

    def _check(self, objectives: Sequence[int], shares: Sequence[float], milestones: Sequence[float]) -> None:
        if list(objectives) not in ([1], [4], [1, 4]):
            raise UserError(f"method.objectives must be [1], [4] or [1,4] (the ensemble), got {list(objectives)}")
        if not all(0 <= weight <= 1 for weight in self.weights.values()):
            given = " and ".join(map(str, self.weights.values()))
            raise UserError(f"method.lambda_1 and lambda_4 must lie in [0, 1], got {given}")
        if any(side % STRIDE for side in self.size):
            raise UserError(
                f"image sides must be divisible by {STRIDE}, got {self.size[0]} x {self.size[1]}; "
                f"try data.image_size={max(STRIDE, min(self.size) // STRIDE * STRIDE)}"
            )
        if len(shares) != len(milestones) or milestones[0] != 0 or list(milestones) != sorted(milestones):
            raise UserError("method.extent_milestones must rise from 0, one for each of method.extent_shares")
        if not all(0 < share <= 1 for share in shares):
            raise UserError(f"method.extent_shares must lie in (0, 1], got {list(shares)}")
        if min(self.tolerance.values()) < 1:
            tolerances = tuple(self.tolerance.values())
            raise UserError(f"method.tolerance_1 and tolerance_4 must be at least 1, or null; got {tolerances}")

    # -- training -------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        rows = self.rows_per_batch if self._corruption_name == "swap" else None
        if rows is not None and rows < 2:
            raise UserError(
                "method.corruption=swap takes patches from other images of a batch, and a batch has one image on each "
                f"device; set data.batch_size={2 * self.world} or more"
            )
        super().on_fit_start()

    def corruption(self) -> Corruption:
        """What training does to clean images of this data set."""
        occlusion = replace(self._corruptions["occlusion"], bank=self.bank)
        corrupt = (self._corruptions | {"occlusion": occlusion})[self._corruption_name]
        if self._occlusion_probability:
            corrupt = Alternately(corrupt, occlusion, self._occlusion_probability)
        return Rotated(corrupt, self._rotation_probability) if self._rotation_probability else corrupt

    def corrupt(self, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (corrupted image, (B, 1, H, W) mask), in float32 and without gradient."""
        with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
            return self.corruption()(clean, draws)

    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of the training crops at this point of the budget, multiples of 8."""
        share = next(s for milestone, s in reversed(self.extents) if self.progress >= milestone)
        sides = (max(share * side, self.extent_floor) for side in self.size)
        height, width = (
            min(side, math.ceil(wanted / STRIDE) * STRIDE) for side, wanted in zip(self.size, sides, strict=True)
        )
        return height, width

    def objective(self, batch: Batch) -> Terms:
        rows = len(batch.image)
        code = self.codes[(self.rand("symmetry", rows) * len(self.codes)).long().clamp(max=len(self.codes) - 1)]
        clean = crop(apply_symmetry(batch.image, code), *self.extent(), self.rand("crop", rows, 2))
        corrupted, mask = self.corrupt(clean, Draws(self.stream("corruption"), rows, self.rank, self.world))
        terms: Terms = {}
        for number, network in zip(self.objectives, self.networks, strict=True):
            prefix = f"objective_{number}/" if len(self.objectives) > 1 else ""
            reconstruction = network(corrupted)
            for name, term in self._terms(number, reconstruction, clean, corrupted, mask).items():
                terms[prefix + name] = term
        return terms

    def _terms(self, number: int, reconstruction: Tensor, clean: Tensor, corrupted: Tensor, mask: Tensor) -> Terms:
        weight, squared = self.weights[number], self.squared_norm
        normal = (1 - weight) * equations.normal_region(reconstruction, clean, mask, squared)
        if number == 1:
            repaired = weight * equations.corrupted_region(reconstruction, clean, mask, squared)
            return {"normal_region": normal, "corrupted_region": repaired}
        amplified = -weight * equations.amplification(reconstruction, clean, corrupted, mask, squared)
        return {"normal_region": normal, "amplification": amplified}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A group for each network: their learning rates fall at their own times.
        groups: Any = [{"params": list(network.parameters())} for network in self.networks]
        return self._optimizer_factory(groups)

    # -- validation: which weights are kept, and when the learning rate falls -------------------------------------

    def rhythm(self, batches_per_epoch: int | None = None) -> int | None:
        return self.validate_every

    def after_batch(self) -> None:
        if self.batches_seen % self.validate_every and self.batches_seen != self.total_batches:
            return
        errors = self.validation_errors(self.holdout_rows())
        if errors is not None:
            errors = self.mean_over_ranks(errors)  # every rank decides alike
            self.select(errors.tolist(), self._bare_optimizer().param_groups)

    @torch.no_grad()
    def validation_errors(self, batches: Iterable[Batch]) -> Tensor | None:
        """Each network's error on held-out normal images under fixed corruptions: (networks,), None without any.

        Objective (1) has its own value, "a good measure of training progress" (Section 4.4). Objective (4) can be
        lowered without end by amplifying, so its error is that in normal regions.
        """
        training = self.training
        self.eval()
        total, rows = torch.zeros(len(self.objectives), device=self.device), 0
        for i, batch in enumerate(batches):
            stream = torch_stream(self.seed, "validation corruption", i, device=batch.image.device)
            corrupted, mask = self.corrupt(batch.image, Draws(stream, len(batch.image)))
            errors = []
            for number, network in zip(self.objectives, self.networks, strict=True):
                terms = self._terms(number, network(corrupted), batch.image, corrupted, mask)
                errors.append(terms["normal_region"] + terms.get("corrupted_region", 0.0))
            total += torch.stack(errors) * len(batch.image)
            rows += len(batch.image)
        self.train(training)
        return total / rows if rows else None

    def select(self, errors: Sequence[float], groups: Sequence[dict[str, Any]]) -> None:
        """Keep the weights that validate best, and halve the learning rate where nothing has improved for long.

        Args:
            errors: validation error of each network now.
            groups: the optimizer's parameter group of each network.
        """
        k = self.batches_seen
        for i, (number, error, group) in enumerate(zip(self.objectives, errors, groups, strict=True)):
            best, tolerance = float(self.best_error[i]), self.tolerance[number]
            if error < best:
                best = error
                self.best_error[i], self.best_at[i] = error, k
            if error <= tolerance * best:
                self.kept[i].take(self.networks[i])
                self.kept_at[i] = k
            elif tolerance > 1 and k - int(self.kept_at[i]) >= self.patience:
                group["lr"] = group["initial_lr"] = 0.0  # early stopping, whatever the schedule says
            if self._schedule is None and k - int(self.best_at[i]) >= self.patience and group["lr"] > 0:
                group["lr"] = max(group["lr"] / 2, self.smallest_rate)
                self.best_at[i] = k

    # -- scoring --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Take back the weights that validated best; then Eq. 13, the average map of clean held-out images."""
        for i, network in enumerate(self.networks):
            if int(self.kept_at[i]) >= 0:
                self.kept[i].give_back(network)
        training = self.training
        self.eval()
        total, rows = torch.zeros_like(self.average_maps), 0
        for batch in batches:
            total += self._maps(batch.image).sum(dim=1)
            rows += len(batch.image)
        self.average_maps.copy_(total / max(rows, 1))
        self.train(training)

    def _maps(self, image: Tensor) -> Tensor:
        """Eq. 3 for every network: (networks, B, 1, H, W)."""
        # In float32 whatever training used: scores must not depend on the number of images beside them.
        with torch.autocast(image.device.type, enabled=False):
            maps = torch.stack([self._differences(image, view) for view in self._views]).mean(dim=0)
            return torch.stack([equations.mean_filter(one, self.smoothing_k, self.smoothing_n) for one in maps])

    def _differences(self, image: Tensor, view: int) -> Tensor:
        """Diff of Eq. 2 for every network, of the images as one symmetry shows them, turned back."""
        if view == 0:
            return torch.stack([self._difference(image, network(image)) for network in self.networks])
        # One code for all rows, so that their number stays open in an exported graph.
        code = torch.full((1,), view, device=image.device)
        turned = apply_symmetry(image, code)
        return torch.stack(
            [undo_symmetry(self._difference(turned, network(turned)), code) for network in self.networks]
        )

    def score(self, image: Tensor) -> Scores:
        if self.average_exponent and tuple(image.shape[-2:]) != self.size:
            raise UserError(f"the average map is of {self.size} pixels and the images are of {tuple(image.shape[-2:])}")
        maps = torch.stack(
            [
                equations.discount_habitual_error(one, average, self.average_exponent)
                for one, average in zip(self._maps(image), self.average_maps, strict=True)
            ]
        ).amax(dim=0)
        return Scores(equations.total(maps), maps)

    def reconstruct(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return self.networks[0](image)
