"""Ten batches of training through Lightning end with the parameters of a bare loop written from the paper's equations.

Networks, batches and random draws are inputs: a loop takes them from a copy of the method and from the datamodule.
Losses, the order of updates, schedules, optimizers and averages are written here anew, in plain torch, with the values
that the test pins by name. Each loop can also be told one mistake, and must then end elsewhere: what a loop would not
notice, the comparison could not either.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer
from torch.nn import functional as F

from adbench.data.datamodule import DataModule
from adbench.data.records import Records, Split
from adbench.experiment.groups import conf_dir
from adbench.streams import torch_stream
from adbench.transforms import corruption, jigsaw
from adbench.transforms.corruption import Draws
from adbench.transforms.symmetry import apply_symmetry, crop

BATCHES = 10
# Adam makes a full step even of a gradient that is nothing but rounding; with this much in its denominator it does not.
EPS = 1e-6
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "eps": EPS}
POLYNOMIAL = {"_target_": "adbench.methods.base.polynomial", "power": 0.9}


@pytest.fixture(scope="module", autouse=True)
def double():
    """Everything in float64, casts to float32 left out: in ten batches adversarial training makes so much of the last
    digit of a float32 that a mistake could hide behind it."""
    cast, default = torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = lambda tensor: tensor if tensor.dtype == torch.float64 else tensor.double()
    _forget()
    yield
    torch.Tensor.float = cast
    torch.set_default_dtype(default)
    _forget()


def _forget() -> None:
    """Grids that transforms keep are of the type that they were asked for first."""
    for module in (corruption, jigsaw):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


class Data(DataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx=0):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch._replace(image=batch.image.double())


class Memory:
    """Random images, or a random table; the first `train` rows are for training."""

    has_masks = False

    def __init__(self, side=None, features=None, train=16, test=2):
        rng = np.random.default_rng(0)
        n = train + test
        self.features = None if features is None else rng.normal(size=(n, features)).astype(np.float32)
        if side:
            coarse = torch.from_numpy(rng.uniform(0, 255, (n, 3, 4, 4)))
            smooth = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
            self.array = smooth.movedim(1, -1).to(torch.uint8).numpy()
        rows = [
            {"split": "train" if i < train else "test", "label": 0, "path": str(i), "defect": "good"} for i in range(n)
        ]
        self.records = Records.of(rows)

    def fingerprint(self):
        return f"memory {len(self.records)} {self.features is None or self.features.shape}"


def roles(records, rng, supervision, *, held_out=0, known=()):
    """The last `held_out` training rows are held out; `known` gives the semi_label of the first rows."""
    train = np.flatnonzero(records.split == "train")
    train, kept = train[: len(train) - held_out], train[len(train) - held_out :]
    semi_label = np.zeros(len(train), np.int8)
    semi_label[: len(known)] = known
    return Split(train, semi_label, kept, np.flatnonzero(records.split == "test"))


@functools.cache
def configuration(name, kind, size):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(None, overrides=[f"+method={name}", f"+data.kind={kind}", f"+data.image_size={size}"])
    return {k: v for k, v in OmegaConf.to_container(cfg.method, resolve=True).items() if k != "recipe"}


def build(name, kind, size, **pins):
    """The method of a preset with its switches pinned; a pin that the constructor does not know is left out."""
    config = configuration(name, kind, size)
    known = inspect.signature(get_class(config["_target_"])).parameters
    torch.manual_seed(0)
    return instantiate({**config, **{key: value for key, value in pins.items() if key in known}}, _convert_="all")


class Last(Callback):
    """Keeps the state after the last batch, before calibration."""

    def on_train_end(self, trainer, pl_module):
        self.state = copy.deepcopy(pl_module.state_dict())


def through_lightning(method, folder, *, batch_size, protocol=roles, **source):
    """(trained method, its copy from before, the batches, all training rows as the datamodule passes them)."""
    source = Memory(**source)
    options = {"batch_size": batch_size, "eval_batch_size": 8, "workers": 0, "seed": 0, "cache_dir": folder}
    size = 1 if source.features is not None else source.array.shape[1]
    options |= {"supervision": method.supervision, "image_size": size}
    known = inspect.signature(DataModule).parameters
    pins = {"rows_per_step": getattr(method, "_rows_per_step", None), "labelled_stream": False}
    data = Data(source, protocol, **options, **{key: value for key, value in pins.items() if key in known})
    data.setup()
    data.set_budget(BATCHES)
    method.double().total_batches = BATCHES
    before = copy.deepcopy(method)
    batches = [data.on_after_batch_transfer(batch) for batch in data.train_dataloader()]
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, callbacks=[last := Last()],
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    method.load_state_dict(last.state)
    assert method.batches_seen == len(batches) == BATCHES
    return method, before, batches, data


def distance(trained, ours):
    """The largest difference of a parameter."""
    theirs = dict(trained.named_parameters())
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    return max(float((p.detach() - theirs[name].detach()).abs().max()) for name, p in ours.named_parameters())


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def step(optimizer, loss, others=()):
    """One update of an optimizer's parameters alone."""
    optimizer.zero_grad()
    for other in others:
        other.zero_grad()
    loss.backward()
    optimizer.step()


# -- CBiGAN: Eqs. 5, 6, 10 to 13, section III-B, Adam with a rate ------------------------------------------------------

CBIGAN = {
    "latent": 8, "width": 2, "rotation": {}, "alpha": 0.01, "consistency_reduction": "sum", "penalty_weight": 10.0,
    "penalty_pairing": "joint", "critic_steps": 1, "encoder_generator_steps": 1, "average_decay": 0.9,
    "average_every": 2, "average_corrected": True, "schedule": POLYNOMIAL,
    "optimizers": {p: {**ADAM, "lr": 1e-3, "betas": [0.0, 0.9]} for p in ("critic", "encoder_generator")},
}  # fmt: skip


def cbigan(folder):
    return through_lightning(build("cbigan", "small", 32, **CBIGAN), folder, batch_size=4, side=32)


def cbigan_loop(m, batches, data, mistake=""):
    alpha = 0.01
    encoder, generator, critic = m.encoder, m.generator, m.critic
    players = [*encoder.parameters(), *generator.parameters()]
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9), eps=EPS)
    of_players = torch.optim.Adam(players, lr=1e-3, betas=(0.0, 0.9), eps=EPS)
    averages = [*m.average_encoder.average.parameters(), *m.average_generator.average.parameters()]
    sums, taken, turns = [torch.zeros_like(p) for p in players], 0, 0
    for k, batch in enumerate(batches):
        m.batches_seen = k
        x, z = 2 * batch.image - 1, m.randn("latent", len(batch.image), 8)
        for optimizer in (of_critic, of_players):
            set_rate(optimizer, 1e-3 if mistake == "constant rate" else 1e-3 * (1 - k / BATCHES) ** 0.9)
        if k % 2 == (mistake == "encoder and generator first"):
            ex, gz = encoder(x).detach(), generator(z).detach()
            wasserstein = critic(gz, z).mean() - critic(x, ex).mean()
            epsilon = m.rand("interpolation", len(x))
            xi = (epsilon[:, None, None, None] * x + (1 - epsilon[:, None, None, None]) * gz).requires_grad_()
            zi = (epsilon[:, None] * ex + (1 - epsilon[:, None]) * z).requires_grad_()
            dx, dz = torch.autograd.grad(critic(xi, zi).sum(), (xi, zi), create_graph=True)
            norm = (dx.pow(2).sum((1, 2, 3)) + dz.pow(2).sum(1)).sqrt()
            penalty = (norm - 1).clamp_min(0) if mistake == "one-sided penalty" else norm - 1
            sign = -1 if mistake == "sign of the critic" else 1
            step(of_critic, sign * wasserstein + 10 * penalty.pow(2).mean())
            continue
        ex, gz = encoder(x), generator(z)
        adversarial = critic(x, ex).mean() - critic(gz, z).mean()
        image = (x - generator(ex)).abs().sum((1, 2, 3))
        latent = (z - encoder(gz)).abs().sum(1) * (mistake != "no latent consistency")
        consistency = (image + latent).mean() if mistake == "mean over the batch" else (image + latent).sum()
        step(of_players, (1 - alpha) * adversarial + alpha * consistency, [of_critic])
        if turns % 2 == 0 or mistake == "average of every step":
            taken += 1
            for mean, total, p in zip(averages, sums, players, strict=True):
                total.mul_(0.9).add_(0.1 * p.detach())
                mean.copy_(total / (1 if mistake == "uncorrected average" else 1 - 0.9**taken))
        turns += 1


# -- IGD: Eqs. 3, 5, 7, 8, 10 to 12, on whole images and on patches ----------------------------------------------------

IGD = {
    "width": 0.125, "latent": 8, "rho": 0.15, "lambda_1": 1.0, "lambda_2": 1.0, "lambda_3": 0.1,
    "residual": "similarity", "pixels": "mean", "gaussian": True, "interpolation": True, "zeta": 0.2,
    "critic_first": True, "critic_sigmoid": {"global": False, "local": False, "small": False},
    "critic_broadcast": False, "pairing": "next", "bn_frozen": False, "decoder_statistics": "trained", "freeze": True,
    "trunks": {"global": "resnet18", "local": "residual", "small": "residual"}, "decoder": "residual",
    "e_step_every": 1, "e_steps": None, "e_step_order": "center_first", "center_floor": 0.1, "variance_floor": 0.01,
    "patches_per_image": 3, "e_step_patches": 3, "flip": False, "schedule": POLYNOMIAL,
    "optimizers": {
        "generator": {**ADAM, "lr": 1e-3, "betas": [0.0, 0.9], "weight_decay": 1e-2},
        "critic": {**ADAM, "lr": 1e-3, "betas": [0.0, 0.9]},
    },
}  # fmt: skip
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
RANGE = 4.7579  # of a normalised pixel
FOUR = (0.0516, 0.3295, 0.3463, 0.2726)


def igd(folder):
    return through_lightning(build("igd", "small", 32, **IGD), folder, batch_size=8, side=32)


def igd_patches(folder):
    """Several local steps within a batch, where the method has them."""
    method = build("igd", "object", 64, **IGD, scales=["local"], local_steps=2)
    return through_lightning(method, folder, batch_size=8, side=64)


def blurred(x):
    """The mean of a 3 x 3 Gaussian window of deviation 1.5 at every place where it fits."""
    line = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).pow(2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(x.flatten(0, 1)[:, None], window[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


def similarity(x, y):
    """Multi-scale structural similarity of each image: (B,)."""
    c1, c2, product = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2, 1.0
    for scale, weight in enumerate(FOUR):
        mx, my = blurred(x), blurred(y)
        vx, vy, vxy = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
        level = (2 * vxy + c2) / (vx + vy + c2)
        if scale == len(FOUR) - 1:
            level = level * (2 * mx * my + c1) / (mx * mx + my * my + c1)
        level = level.mean((2, 3))
        product = product * torch.where(level > 0, level.clamp_min(1e-30) ** weight, 0.0)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.mean(1)


def igd_loop(m, batches, data, mistake="", scale="global"):
    d = m.descriptors[scale]
    encoder, decoder, critic = d.encoder, d.decoder, d.critic
    of_generator = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=1e-3, betas=(0.0, 0.9), eps=EPS,
        weight_decay=0 if mistake == "no weight decay" else 1e-2,
    )  # fmt: skip
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9), eps=EPS)
    per_epoch = data.batches_per_epoch

    def seen(image, purpose):
        x = (image - MEAN[:, None, None]) / STD[:, None, None]
        if scale == "global":
            return x
        order = m.rand(purpose, len(x), 9).argsort(1)[:, :3]  # 3 of the 9 patches of 32 px, 16 px apart
        patches = [[x[i, :, 16 * (p // 3) :, 16 * (p % 3) :][:, :32, :32] for i, p in enumerate(ps)] for ps in order.T]
        return torch.stack([patch for turn in patches for patch in turn])  # neighbours are of different images

    @torch.no_grad()
    def e_step():
        z = torch.cat([encoder(seen(b.image, f"e_step/{i}")) for i, b in enumerate(data.training_batches("cpu"))])
        center = z.double().mean(0).float()
        center = torch.where(center.abs() < 0.1, center.sign() * 0.1, center)
        spread = (z - center).double().pow(2).sum(1).mean()
        return center, (spread.sqrt() if mistake == "root of the variance" else spread).clamp_min(0.01).float()

    m.train()
    center, variance = e_step()  # the trunk starts from scratch: as in training
    for k, batch in enumerate(batches):
        m.batches_seen = k
        if k and k % per_epoch == 0 and mistake != "one E-step":
            m.eval()
            center, variance = e_step()
            m.train()
        for optimizer in (of_critic, of_generator):
            set_rate(optimizer, 1e-3 if mistake == "constant rate" else 1e-3 * (1 - k / BATCHES) ** 0.9)
        whole = seen(batch.image, "patches")
        for j, x in enumerate(whole.tensor_split(getattr(m, "local_steps", 1) if scale == "local" else 1)):
            z = encoder(x)
            x_hat = decoder(z)
            alpha = m.rand(f"{scale}/alpha" + (f"/{j}" if j else ""), len(x), 1) / 2
            mixed = decoder(alpha * z + (1 - alpha) * torch.cat([z[-1:], z[:-1]]))

            def critics_turn(x=x, x_hat=x_hat, mixed=mixed, alpha=alpha):
                blend = 0.2 * x + (0.8 if mistake != "blend of the image alone" else 0.0) * x_hat.detach()
                guess = critic(mixed.detach()) - alpha[:, 0]
                step(of_critic, guess.pow(2).mean() + critic(blend).pow(2).mean())

            if mistake != "generator first":
                critics_turn()
            residual = 0.15 * (x - x_hat).abs().mean((1, 2, 3)) / RANGE + 0.85 * (1 - similarity(x, x_hat))
            gaussian = 1 - torch.exp(-(z - center).pow(2).sum(1) / variance)
            fooled = critic(mixed).pow(2).mean() * (mistake != "no adversarial term")
            step(of_generator, gaussian.mean() + residual.mean() + 0.1 * fooled, [of_critic])
            if mistake == "generator first":
                critics_turn()


# -- P-WAE: Eqs. 11, 14, 15, 17 to 20, SGD with inverse decay ---------------------------------------------------------

PWAE = {
    "grid": 3, "backbone": "resnet18", "width": 0.125, "latent": 4, "enlarge": {"small": 2},
    "decoder_input": "feature_map", "output": "sigmoid", "reconstruction": "squared", "lambda_0": 1.0, "lambda_1": 0.5,
    "lambda_2": 0.1, "lambda_3": 0.5, "beta": 0.1, "prior": "student_t", "nu": 5.0, "location_step": 1.0,
    "divergence": "sliced_wasserstein", "divergence_root": False, "projections": 6, "hsic": "normalised",
    "hsic_epsilon": 0.1, "hsic_sigma": 5.0, "hsic_standardized": True, "hsic_side": 30, "permutations": 12,
    "permutation_choice": "distant", "jigsaw_input": "codes", "identity_share": 0.7,
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 2e-3, "momentum": 0.9},
    "schedule": {"_target_": "adbench.methods.pwae.inverse_decay", "rate": 10.0, "power": 0.75},
}  # fmt: skip


def pwae(folder):
    return through_lightning(build("pwae", "small", 32, **PWAE), folder, batch_size=4, side=32)


def student_t(uniform):
    """T(5, k, 1) of tile k = 1 .. 9, by Bailey's polar method: (n, 9, d, 2) -> (n, 9, d)."""
    u, v = 1 - uniform[..., 0], uniform[..., 1]
    centred = (5 * (u ** (-2 / 5) - 1)).sqrt() * torch.cos(2 * math.pi * v)
    return centred + torch.arange(1.0, 10.0)[:, None]


def nhsic(a, b):
    """tr(K~_a K~_b), K~ = HKH (HKH + 0.1 m I)^-1, Gaussian kernels of width 5 sqrt(dimension): (m, .) twice -> ()."""
    m = len(a)
    h, found = torch.eye(m, dtype=torch.double) - 1 / m, []
    for rows in (a.double(), b.double()):
        kernel = torch.exp(-(rows[:, None] - rows[None]).pow(2).sum(-1) / (2 * 25 * rows.shape[1]))
        found.append(h @ kernel @ h @ torch.linalg.inv(h @ kernel @ h + 0.1 * m * torch.eye(m, dtype=torch.double)))
    return torch.trace(found[0] @ found[1])


def pwae_loop(m, batches, data, mistake=""):
    pooled = torch.cat([F.adaptive_avg_pool2d(b.image, 30).flatten(1) for b in data.training_batches("cpu")]).double()
    mean, std = pooled.mean(0).float(), pooled.std(0, correction=0).clamp_min(1 / 255).float()
    momentum = 0 if mistake == "no momentum" else 0.9
    optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=2e-3, momentum=momentum)
    m.train()
    for k, batch in enumerate(batches):
        m.batches_seen, image = k, batch.image
        set_rate(optimizer, 2e-3 * (1 + 10 * k / BATCHES) ** (0 if mistake == "constant rate" else -0.75))
        maps, z = m.encode(image)
        x_hat = m._mosaic_to_image(maps)
        n = len(image)
        # Eq. 15
        prior = student_t(m.rand("hsic prior", n, 9, 4, 2)).flatten(1)
        x = (F.adaptive_avg_pool2d(image, 30).flatten(1) - mean) / std
        sign = -1 if mistake == "sign of the bottleneck" else 1
        bottleneck = nhsic(prior, z.flatten(1)) - sign * 0.1 * nhsic(x, z.flatten(1))
        # Eqs. 17, 18
        directions = torch.randn((9, 6, 4), generator=m.stream("directions"))
        directions = directions / directions.norm(dim=-1, keepdim=True)
        samples = student_t(m.rand("divergence prior", n, 9, 4, 2))
        ours, theirs = (torch.einsum("mkd,kpd->mkp", codes, directions) for codes in (z, samples))
        if mistake != "unsorted projections":
            ours, theirs = ours.sort(0).values, theirs.sort(0).values
        sliced = (ours - theirs).pow(2).mean((0, 2))
        sliced = sliced.mean() if mistake == "mean over tiles" else sliced.sum()
        # Eq. 19
        stay, which = m.rand("permutation", n, 2).unbind(1)
        classes = torch.where(stay < 0.7, 0, 1 + (which * 12).long())
        shuffled = torch.stack([codes[m.permutations[c]] for codes, c in zip(z, classes, strict=True)])
        logits = m.jigsaw_head((z if mistake == "no shuffling" else shuffled).flatten(1))
        jigsaw = -logits.log_softmax(1)[torch.arange(n), classes].mean()
        step(optimizer, (image - x_hat).pow(2).mean() + 0.5 * bottleneck.float() + 0.1 * sliced + 0.5 * jigsaw)


# -- SSAE: objectives (1) and (4), the growing crops, weights kept by validation, halving by patience -----------------

SSAE = {
    "objectives": [1, 4], "lambda_1": 0.7, "lambda_4": 0.2, "squared_norm": True, "kernel": 3, "width": 0.125,
    "initialization": "kaiming", "corruption": "elastic", "occlusion_probability": {"small": 0.5},
    "rotation_probability": {"small": 0.0}, "symmetries": {"small": "all"}, "symmetric_maps": False,
    "extent_shares": [0.5, 1.0], "extent_milestones": [0.0, 0.4], "extent_floor": 8, "validate_every": 1, "patience": 1,
    "smallest_rate": 1e-6, "tolerance_1": 1.0, "tolerance_4": 1.1, "optimizer": {**ADAM, "lr": 1e-2}, "schedule": None,
}  # fmt: skip


def ssae(folder):
    method = build("ssae", "small", 32, **SSAE)
    return through_lightning(method, folder, batch_size=4, protocol=functools.partial(roles, held_out=3), side=32)


def ssae_loop(m, batches, data, mistake=""):
    networks, objectives = list(m.networks), (1, 4)
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-2, eps=EPS) for network in networks]
    best, best_at, kept_at, halved = [math.inf] * 2, [0] * 2, [-1] * 2, 0

    def terms(number, x_hat, clean, corrupted, mask):
        mask = mask.expand_as(clean)
        area, rest = mask.sum((1, 2, 3)).clamp_min(1), (1 - mask).sum((1, 2, 3)).clamp_min(1)
        outside = ((1 - mask) * (x_hat - clean)).pow(2).sum((1, 2, 3)) / rest
        if number == 1:
            inside = (mask * (x_hat - clean)).pow(2).sum((1, 2, 3)) / area
        else:
            inside = ((corrupted - clean).abs() * (x_hat - clean)).pow(2).sum((1, 2, 3)) / area
        return outside.mean(), inside.mean()

    @torch.no_grad()
    def validated():
        errors, rows = [0.0, 0.0], 0
        m.eval()
        for i, batch in enumerate(data.holdout_batches("cpu")):
            stream = torch_stream(m.seed, "validation corruption", i)
            corrupted, mask = m.corrupt(batch.image, Draws(stream, len(batch.image)))
            rows += len(batch.image)
            for at, (number, network) in enumerate(zip(objectives, networks, strict=True)):
                outside, inside = terms(number, network(corrupted), batch.image, corrupted, mask)
                error = 0.3 * outside + 0.7 * inside if number == 1 else 0.8 * outside
                errors[at] += float(error) * len(batch.image)
        m.train()
        return [error / rows for error in errors]

    m.train()
    for k, batch in enumerate(batches):
        m.batches_seen, n = k, len(batch.image)
        code = m.codes[(m.rand("symmetry", n) * len(m.codes)).long()]
        side = 16 if k / BATCHES < 0.4 and mistake != "whole images" else 32
        clean = crop(apply_symmetry(batch.image, code), side, side, m.rand("crop", n, 2))
        corrupted, mask = m.corrupt(clean, Draws(m.stream("corruption"), n))
        for number, network, optimizer in zip(objectives, networks, optimizers, strict=True):
            outside, inside = terms(number, network(corrupted), clean, corrupted, mask)
            share = 0.7 if number == 1 else 0.2 if mistake == "amplification is an error" else -0.2
            step(optimizer, (0.3 if number == 1 else 0.8) * outside + share * inside)
        for at, error in enumerate(validated()):
            if error < best[at]:
                best[at], best_at[at] = error, k + 1
            tolerance, group = (1.0, 1.1)[at], optimizers[at].param_groups[0]
            if error <= tolerance * best[at]:
                kept_at[at] = k + 1
                for name, value in networks[at].state_dict().items():
                    m.kept[at].get_buffer(name.replace(".", "/")).copy_(value)
            elif tolerance > 1 and k + 1 - kept_at[at] >= 1:
                group["lr"] = 0.0
            if k + 1 - best_at[at] >= 1 and group["lr"] > 0 and mistake != "no halving":
                group["lr"], best_at[at], halved = max(group["lr"] / 2, 1e-6), k + 1, halved + 1
    assert halved or mistake


# -- ESAD: Eqs. 5 to 8 on images and, several steps a batch, on a table -----------------------------------------------

ESAD = {
    "widths": [4, 4, 4, 8, 8], "network": "deep", "batch_norm": True, "code_bn": False, "pad": 0, "lambda_1": 0.5,
    "lambda_2": 2.0, "inverse_eps": 1e-3, "second_encoder": True, "labelled_stream": False, "clip": 5.0,
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.02},
    "schedule": {"_target_": "adbench.methods.base.step_decay", "milestones": [0.25, 0.5, 0.75], "gamma": 0.5},
    "phi": {"turn": True, "permutation": True, "noise": 0.1, "normal": False},
}  # fmt: skip
KNOWN = functools.partial(roles, known=(1, -1, -1, 1, -1, -1))


def esad(folder):
    method = build("esad", "small", 32, **ESAD, reduction="sum", code_reduction="sum", rows_per_step=None)
    return through_lightning(method, folder, batch_size=8, protocol=KNOWN, side=32)


def esad_table(folder):
    pins = ESAD | {"mlp": {"hidden": [5], "embedding": 3}, "scaling": "min_max"}
    method = build("esad", "tabular", 6, **pins, reduction="mean", code_reduction="mean", rows_per_step=4)
    return through_lightning(method, folder, batch_size=12, protocol=KNOWN, features=6, train=24)


def esad_loop(m, batches, data, mistake="", table=False):
    networks = [m.encoder, m.decoder, m.second_encoder]
    parameters = [p for network in networks for p in network.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    if table:
        rows = torch.cat([batch.image for batch in data.training_batches("cpu")])
        low, high = rows.amin(0), rows.amax(0)
        m.scaling.offset.copy_(low)
        m.scaling.unit.copy_(high - low)

    def energy(values):
        squares = values.pow(2).flatten(1)
        return squares.mean(1) if table or mistake == "means for sums" else squares.sum(1)

    def groups(values, y):
        unlabelled, labelled = values[y == 0], values[y != 0]
        if mistake == "one mean over all rows":
            return values.mean()
        return sum(part.mean() for part in (unlabelled, labelled) if len(part))

    m.train()
    for k, batch in enumerate(batches):
        m.batches_seen = k
        halvings = sum(k / BATCHES >= milestone for milestone in (0.25, 0.5, 0.75))
        set_rate(optimizer, 0.02 * (1.0 if mistake == "constant rate" else 0.5**halvings))
        x, y = (batch.image - low) / (high - low) if table else batch.image, batch.semi_label
        targets = x.clone()
        if mistake != "no displacement":
            targets[y < 0] = m.displaced(x)[y < 0]  # φ's draws are of all rows of a batch
        for part in torch.arange(len(x)).split(4 if table and mistake != "one step a batch" else len(x)):
            xs, target, ys = x[part], targets[part], y[part]
            z = m.encoder(xs)
            x_hat = m.decoder(z)
            z_hat = m.second_encoder(x_hat)
            code = energy(z_hat)
            pushed = torch.where(ys < 0, code if mistake == "no inverse norm" else 1 / (code + 1e-3), code)
            assistance = energy(z_hat - (z.detach() if mistake == "gradient of z stopped" else z)).mean()
            loss = groups(energy(x_hat - target), ys) + 0.5 * groups(pushed, ys) + 2.0 * assistance
            optimizer.zero_grad()
            loss.backward()
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
            if norm > 5 and mistake != "no clipping":
                for p in parameters:
                    p.grad.mul_(5 / (norm + 1e-6))
            optimizer.step()


# -- the comparison ---------------------------------------------------------------------------------------------------

LOOPS = {
    "cbigan": (cbigan, cbigan_loop, ["sign of the critic", "one-sided penalty", "encoder and generator first",
               "no latent consistency", "mean over the batch", "constant rate", "average of every step",
               "uncorrected average"]),
    "igd": (igd, igd_loop, ["root of the variance", "one E-step", "constant rate", "blend of the image alone",
            "generator first", "no adversarial term", "no weight decay"]),
    "igd patches": (igd_patches, functools.partial(igd_loop, scale="local"), ["one E-step", "generator first"]),
    "pwae": (pwae, pwae_loop, ["no momentum", "constant rate", "sign of the bottleneck", "unsorted projections",
             "mean over tiles", "no shuffling"]),
    "ssae": (ssae, ssae_loop, ["whole images", "amplification is an error", "no halving"]),
    "esad": (esad, esad_loop, ["means for sums", "one mean over all rows", "constant rate", "no displacement",
             "no inverse norm", "gradient of z stopped", "no clipping"]),
    "esad on a table": (esad_table, functools.partial(esad_loop, table=True), ["one step a batch", "no displacement",
                        "constant rate", "one mean over all rows"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """name -> what `through_lightning` returns, each trained once."""
    return functools.cache(lambda name: LOOPS[name][0](tmp_path_factory.mktemp("cache")))


def after_loop(fitted, name, mistake=""):
    trained, before, batches, data = fitted(name)
    ours = copy.deepcopy(before)
    LOOPS[name][1](ours, batches, data, mistake)
    return trained, ours


@pytest.mark.parametrize("name", LOOPS)
def test_ten_batches_through_lightning_are_those_of_a_bare_loop(fitted, name):
    trained, ours = after_loop(fitted, name)
    assert distance(trained, fitted(name)[1]) > 1e-3  # it has learned something
    assert distance(trained, ours) < 1e-6
    if name == "ssae":
        for kept, copied in zip(trained.kept.buffers(), ours.kept.buffers(), strict=True):
            assert torch.allclose(kept, copied, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, one) for name, (*_, mistakes) in LOOPS.items() for one in mistakes]
)
def test_a_loop_with_one_mistake_ends_elsewhere(fitted, name, mistake):
    trained, ours = after_loop(fitted, name, mistake)
    assert distance(trained, ours) > 5e-5
