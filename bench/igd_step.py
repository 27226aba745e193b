"""One training step of IGD's whole-image model at 256 px, beside the same step written naively.

The baseline follows the paper's equations one by one: encoder, decoder and critic as plain layers (doubling, then
convolving; convolving, then averaging), every pass computed where it is needed (four of the decoder, three of the
critic, two of the frozen trunk), float32, contiguous memory, MS-SSIM from pytorch-msssim. Both start from the
same weights.

    python bench/igd_step.py
"""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_msssim
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adbench.experiment.precision import cpu_has_bfloat16
from adbench.networks.igd import ConvThenHalve, Descriptor, DoubleThenConv, ImageNorm, Up
from adbench.types import Batch

SIDE, BATCH, REPEATS = 256, 2, 3


def measure() -> list[dict[str, object]]:
    """Seconds per step in bfloat16 and in float32: a list of {name, value, unit, baseline, ratio, note}."""
    method = build_method(SIDE)
    image = torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    naive = NaiveStep(method.descriptors["global"], method.normalize(image).contiguous())
    precisions = ["bf16-mixed"] * cpu_has_bfloat16() + ["32-true"]  # emulated, a step would take minutes
    seconds: dict[str, list[float]] = {name: [] for name in ("naive", *precisions)}
    for _ in range(REPEATS):  # interleaved, so that a busy neighbour slows all three
        start = time.perf_counter()
        naive.step()
        seconds["naive"].append(time.perf_counter() - start)
        for precision in precisions:
            seconds[precision].append(timed_step(copy.deepcopy(method), image, precision))
    best = {name: min(values) for name, values in seconds.items()}
    note = (
        f"global {SIDE} px, batch {BATCH}, frozen trunk, {torch.get_num_threads()} CPU threads, best of {REPEATS}; "
        "baseline: naive step in float32, contiguous memory"
    )
    return [
        {"name": f"IGD step, {precision}", "value": round(best[precision], 3), "unit": "s",
         "baseline": round(best["naive"], 3), "ratio": round(best[precision] / best["naive"], 3), "note": note}
        for precision in precisions
    ]  # fmt: skip


def build_method(side: int, **changes: Any) -> Any:
    """The whole-image model with its paper settings and a trunk that counts as pretrained."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        cfg = compose(None, overrides=["+method=igd", "+data.kind=object", f"+data.image_size={side}"])
    options = OmegaConf.to_container(cfg.method, resolve=True)
    del options["recipe"]
    torch.manual_seed(0)
    method = instantiate(options | {"scales": ["global"], "flip": False} | changes, _convert_="all")
    d = method.descriptors["global"]
    d.center.normal_(generator=torch.Generator().manual_seed(1))
    d.variance.fill_(float(len(d.center)))
    method.on_pretrained()
    method.prepared.fill_(True)
    return method


# -- ours: the step that training takes ----------------------------------------------------------------------------


class _Clock(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class _Repeated(LightningDataModule):
    batches_per_epoch = 1000

    def __init__(self, image: Tensor, times: int) -> None:
        super().__init__()
        zeros = torch.zeros(len(image), dtype=torch.long)
        batch = Batch(image, zeros - 1, zeros, torch.zeros(len(image), 1, 1, 1, dtype=torch.bool), zeros)
        self.batches = [batch] * times

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches, batch_size=None)


def timed_step(method: Any, image: Tensor, precision: str, times: int = 2) -> float:
    """Seconds of the fastest of a few training steps in Lightning's loop."""
    clock = _Clock()
    method.total_batches = 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        trainer = Trainer(
            max_epochs=1, precision=precision, accelerator="cpu", callbacks=[clock], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(method, datamodule=_Repeated(image, times))
    return min(clock.seconds)


# -- the baseline -----------------------------------------------------------------------------------------------------


class _PlainHalve(ConvThenHalve):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.conv2d(x, self.weight, self.bias, padding=self.padding), 2)


class _PlainDouble(DoubleThenConv):
    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(doubled, self.weight, self.bias, padding=self.padding)


class _PlainNorm(ImageNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


def plain(d: Descriptor) -> Descriptor:
    """The same networks with the same weights, every layer computed as it is written down."""
    d = copy.deepcopy(d)
    swap = {ConvThenHalve: _PlainHalve, DoubleThenConv: _PlainDouble, ImageNorm: _PlainNorm}
    for module in d.modules():
        if type(module) in swap:
            module.__class__ = swap[type(module)]
        if isinstance(module, Up):
            convolution, doubling = module.shortcut
            module.shortcut = nn.Sequential(doubling, convolution)
    for parameter in d.parameters():
        parameter.data = parameter.data.contiguous()
    return d


class NaiveStep:
    """Generator step, then critic step, each recomputing what it needs.

    Args:
        d: networks, center and variance; copied.
        x: (B, 3, S, S) normalised, contiguous.
        critic_first: take the critic's step first, as `IGD` does (for comparing losses).
        alpha: (B, 1) instead of random ones.
    """

    def __init__(
        self, d: Descriptor, x: Tensor, critic_first: bool = False, alpha: Tensor | None = None, scales: int = 5
    ) -> None:
        self.d, self.x, self.critic_first, self.fixed_alpha = plain(d), x, critic_first, alpha
        self.d.encoder.trunk.requires_grad_(False)
        self.d.train()
        self.d.encoder.eval()
        self.weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[:scales]
        of_autoencoder = [*self.d.encoder.projection.parameters(), *self.d.decoder.parameters()]
        self.generator_optimizer = torch.optim.Adam(of_autoencoder, 1e-4, (0.0, 0.9), weight_decay=1e-6)
        self.critic_optimizer = torch.optim.Adam(self.d.critic.parameters(), 1e-4, (0.0, 0.9))

    def step(self) -> dict[str, float]:
        """One step of both players; the value of every term."""
        alpha = self.fixed_alpha if self.fixed_alpha is not None else torch.rand(len(self.x), 1) / 2
        turns = [self.critic_turn, self.generator_turn]
        terms: dict[str, Tensor] = {}
        for turn in turns if self.critic_first else reversed(turns):
            terms |= turn(alpha)
        return {name: term.item() for name, term in terms.items()}

    def _mixed(self, z: Tensor, alpha: Tensor) -> Tensor:
        return alpha * z + (1 - alpha) * z.roll(1, 0)

    def generator_turn(self, alpha: Tensor) -> dict[str, Tensor]:
        d, x = self.d, self.x
        d.critic.requires_grad_(False)
        z = d.encoder(x)
        x_hat = d.decoder(z)
        mixed_hat = d.decoder(self._mixed(z, alpha))
        similarity = pytorch_msssim.ms_ssim(x, x_hat, data_range=4.7579, weights=list(self.weights))
        terms = {
            "gaussian": (1 - torch.exp(-(z - d.center).pow(2).sum(1) / d.variance)).mean(),
            "reconstruction": 0.15 * (x - x_hat).abs().mean() / 4.7579 + 0.85 * (1 - similarity),
            "interpolation": 0.1 * d.critic(mixed_hat).pow(2).mean(),
        }
        self._descend(terms, self.generator_optimizer)
        d.critic.requires_grad_(True)
        return terms

    def critic_turn(self, alpha: Tensor) -> dict[str, Tensor]:
        d, x = self.d, self.x
        with torch.no_grad():
            z = d.encoder(x)
            mixed_hat, x_hat = d.decoder(self._mixed(z, alpha)), d.decoder(z)
        terms = {
            "coefficient": (d.critic(mixed_hat) - alpha.squeeze(1)).pow(2).mean(),
            "blend": d.critic(0.2 * x + 0.8 * x_hat).pow(2).mean(),
        }
        self._descend(terms, self.critic_optimizer)
        return terms

    @staticmethod
    def _descend(terms: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
