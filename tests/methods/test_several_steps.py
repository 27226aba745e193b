import functools

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from adbench.methods.base import step_decay
from adbench.methods.several_steps import SeveralSteps
from adbench.types import Batch

ROWS = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
SGD = functools.partial(torch.optim.SGD, lr=0.1)


def batch_of(rows: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return Batch(rows, zeros - 1, zeros, torch.zeros(len(rows), 1, 1, 1, dtype=torch.bool), torch.arange(len(rows)))


class Line(SeveralSteps):
    """Fits a noisy target, so that every draw leaves a trace in the weights."""

    def __init__(self, *options):
        super().__init__(SGD, *options)
        torch.manual_seed(1)
        self.net, self.seen, self.rates = nn.Linear(3, 1), [], []

    def objective(self, batch):
        self.seen.append(len(batch.image))
        self.rates.append(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])
        noise = self.randn("target", len(batch.image), 1)
        return {"fit": (self.net(batch.image) - noise).square().mean(), "size": 0.1 * self.net.weight.square().sum()}


class Data(pl.LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)

    def training_batches(self, device):
        return iter(self.batches)


def fit(method, batches):
    method.total_batches = len(batches)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=Data(batches))
    return method


def test_a_batch_is_cut_into_steps_and_the_rest_is_dropped():
    assert fit(Line(None, 32), [batch_of(ROWS), batch_of(ROWS[:31])]).seen == [32, 32, 31]


def test_several_steps_equal_a_plain_loop_over_the_pieces():
    ours, plain = fit(Line(None, 32), [batch_of(ROWS)]), Line()
    optimizer = SGD(plain.net.parameters())
    noise = plain.randn("target", 64, 1)  # one draw for all rows of the batch that are used
    for rows in (slice(0, 32), slice(32, 64)):
        loss = (plain.net(ROWS[rows]) - noise[rows]).square().mean()
        loss = loss + 0.1 * plain.net.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(ours.net.weight, plain.net.weight)


def test_every_step_of_every_batch_draws_its_own_noise():
    draws = []

    class Drawing(Line):
        def objective(self, batch):
            draws.append(self.randn("x", len(batch.image)))
            return super().objective(batch)

    fit(Drawing(None, 32), [batch_of(ROWS), batch_of(ROWS)])
    assert len(draws) == len({tuple(draw.tolist()) for draw in draws}) == 4


def test_clipping_bounds_the_step_and_leaves_its_direction():
    free, clipped = fit(Line(None, None, None), [batch_of(ROWS)]), fit(Line(None, None, 0.01), [batch_of(ROWS)])
    start = Line()
    move = lambda m: torch.cat([(p - q).flatten() for p, q in zip(m.net.parameters(), start.net.parameters())])  # noqa: B905, E731
    torch.testing.assert_close(move(clipped).norm(), torch.tensor(0.1 * 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(nn.functional.cosine_similarity(move(free), move(clipped), dim=0), torch.tensor(1.0))


def test_esad_s_rate_halves_after_each_quarter():
    rates = fit(Line(step_decay([0.25, 0.5, 0.75], 0.5), 32), [batch_of(ROWS)] * 8).rates
    assert [rates[i] for i in (0, 3, 4, 7, 8, 12, 15)] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.0125, 0.0125]


def test_the_recorded_term_is_the_mean_over_the_steps():
    method = Line(None, 32)
    method.log_every = 1
    terms = []
    original = method.objective
    method.objective = lambda batch: terms.append(original(batch)) or terms[-1]
    fit(method, [batch_of(ROWS)])
    assert abs(method.latest_terms["fit"] - (terms[0]["fit"].item() + terms[1]["fit"].item()) / 2) < 1e-6
