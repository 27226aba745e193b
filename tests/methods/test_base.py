import math

import pytest
import torch
from torch import nn

from adbench.methods.base import (
    Adversarial,
    NonFiniteLoss,
    Phase,
    SingleObjective,
    polynomial,
    step_decay,
)


class Two(Adversarial):
    def __init__(self, **kwargs):
        super().__init__(
            {"first": lambda p: torch.optim.SGD(p, lr=1.0), "second": lambda p: torch.optim.SGD(p, lr=1.0)}, **kwargs
        )
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

    def phases(self):
        joint = lambda batch: {"sum": (self.a(batch) * self.b(batch)).mean()}  # noqa: E731
        return [Phase("first", [self.a], joint, cycle=2, at=(0,)), Phase("second", [self.b], joint, cycle=2, at=(1,))]


def test_a_phase_acts_on_its_batches_only():
    phase = Phase("critic", [], lambda batch: {}, cycle=6, at=(0, 1, 2, 3, 4))
    assert [phase.acts(k) for k in range(7)] == [True] * 5 + [False, True]


def fit(method, batches=2):
    import pytorch_lightning as pl

    class Rows(pl.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(batches, 1), batch_size=1)

        def training_batches(self, device):
            return []

        holdout_batches = training_batches

    method.total_batches = batches
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=Rows())
    return method


@pytest.mark.parametrize(("batches", "changed"), [(1, (True, False)), (2, (True, True))])
def test_each_phase_steps_its_own_networks_and_leaves_the_others(batches, changed):
    method = Two()
    before = [p.clone() for p in (method.a.weight, method.b.weight)]
    fit(method, batches)
    after = (method.a.weight, method.b.weight)
    assert tuple(not torch.equal(x, y) for x, y in zip(before, after, strict=True)) == changed
    assert all(p.requires_grad for p in method.parameters())


def test_a_loss_that_becomes_nan_names_the_term_and_the_batch():
    class Broken(SingleObjective):
        def __init__(self):
            super().__init__(lambda p: torch.optim.SGD(p, lr=0.1))
            self.net = nn.Linear(1, 1)

        def objective(self, batch):
            value = math.nan if self.batches_seen == 3 else 1.0
            return {"fine": self.net(batch).mean(), "reconstruction": self.net(batch).mean() * value}

    with pytest.raises(NonFiniteLoss, match="'reconstruction' became nan at training batch 3"):
        fit(Broken(), batches=12)


def test_schedules_are_functions_of_the_share_of_the_budget():
    schedule = polynomial(0.9)
    assert schedule(0.0) == 1.0
    assert schedule(0.5) == pytest.approx(0.535887, abs=1e-6)  # 0.5 ** 0.9
    assert schedule(1.0) == 0.0
    assert [step_decay([0.5, 0.75], 0.1)(p) for p in (0.0, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])


def test_noise_is_the_same_for_the_same_batch_and_differs_between_batches_and_purposes():
    method = Two()
    first = method.randn("z", 3, 2)
    assert torch.equal(first, method.randn("z", 3, 2))
    assert not torch.equal(first, method.randn("epsilon", 3, 2))
    method.batches_seen = 1
    assert not torch.equal(first, method.randn("z", 3, 2))
