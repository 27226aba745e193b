import functools
from types import SimpleNamespace

import pytest
import torch

from adbench.losses.ssae import squared_difference
from adbench.methods.ssae import SSAE
from adbench.streams import torch_stream
from adbench.transforms.corruption import Alternately, Cutout, Draws, Elastic, Occlusion, Rotated, Swap, Untouched
from adbench.transforms.symmetry import apply_symmetry, undo_symmetry
from adbench.types import Batch, UserError

SIDE = 32


def make(**changes) -> SSAE:
    options = {
        "image_size": SIDE, "objectives": [1], "lambda_1": 0.5, "lambda_4": 0.1,
        "squared_norm": True, "kernel": 3, "width": 1 / 16, "corruption": "elastic", "elastic": Elastic(),
        "occlusion": Occlusion(), "cutout": Cutout(), "swap": Swap(),
        "occlusion_probability": 0.0, "rotation_probability": 0.0, "foreign": None, "symmetries": "all",
        "extent_shares": [0.25, 0.5, 0.75, 1.0],
        "extent_milestones": [0.0, 0.15, 0.35, 0.6], "extent_floor": 16, "difference": "squared",
        "smoothing_k": 3, "smoothing_n": 2, "average_exponent": 0, "validate_every": 10, "patience": 20,
        "smallest_rate": 1e-6, "tolerance_1": 1.0, "tolerance_4": 1.1, "schedule": None, "initialization": "kaiming",
        "symmetric_maps": False,
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-3),
    } | changes  # fmt: skip
    torch.manual_seed(0)
    method = SSAE(**options)
    method.total_batches = 1
    return method


def batch(rows: int = 4, seed: int = 0) -> Batch:
    image = torch.rand(rows, 3, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear")
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Batch(image, zeros - 1, zeros, torch.zeros(rows, 1, SIDE, SIDE, dtype=torch.bool), torch.arange(rows))


def groups(method: SSAE, rate: float = 1e-4) -> list[dict]:
    return [{"lr": rate} for _ in method.objectives]


# -- training -----------------------------------------------------------------------------------------------------


def test_the_objective_is_a_function_of_the_batch_number_alone():
    method = make()
    first = method.objective(batch())
    assert method.objective(batch()) == first
    method.batches_seen = 1
    assert method.objective(batch())["corrupted_region"] != first["corrupted_region"]


def test_labels_do_not_reach_the_objective():
    method, given = make(), batch()
    flipped = given._replace(label=1 - given.label, semi_label=-torch.ones_like(given.semi_label), mask=~given.mask)
    assert method.objective(flipped) == method.objective(given)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_lambda_shares_out_the_two_terms(weight):
    terms = make(lambda_1=weight).objective(batch())
    assert (terms["normal_region"] > 0) == (weight < 1)
    assert (terms["corrupted_region"] > 0) == (weight > 0)


def test_objective_4_rewards_amplification():
    terms = make(objectives=[4]).objective(batch())
    assert terms["amplification"] < 0 < terms["normal_region"]


def test_every_parameter_of_both_networks_of_the_ensemble_learns_from_its_own_objective():
    method = make(objectives=[1, 4])
    terms = method.objective(batch())
    assert set(terms) == {
        "objective_1/normal_region", "objective_1/corrupted_region",
        "objective_4/normal_region", "objective_4/amplification",
    }  # fmt: skip
    (terms["objective_1/normal_region"] + terms["objective_1/corrupted_region"]).backward()
    assert all(p.grad is not None for p in method.networks[0].parameters())
    assert all(p.grad is None for p in method.networks[1].parameters())
    optimizer = method.configure_optimizers()
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(method.trained_parameters())
    assert len(optimizer.param_groups) == 2


def test_two_steps_change_every_trained_parameter():
    method = make()
    before = [p.detach().clone() for p in method.trained_parameters()]
    optimizer = method.configure_optimizers()
    for k in range(2):
        method.batches_seen = k
        optimizer.zero_grad()
        torch.stack(list(method.objective(batch()).values())).sum().backward()
        optimizer.step()
    assert all((p != b).any() for p, b in zip(method.trained_parameters(), before, strict=True))


def test_without_corruption_the_objective_is_a_plain_autoencoders():
    method = make(corruption="none", symmetries="none", extent_floor=SIDE).train()
    terms = method.objective(batch())
    assert terms["corrupted_region"] == 0
    expected = 0.5 * squared_difference(batch().image, method.networks[0](batch().image)).mean()
    torch.testing.assert_close(terms["normal_region"], expected)


def test_training_runs_under_bfloat16_with_losses_in_float32_and_the_same_corruption():
    method = make()
    full = method.objective(batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = method.objective(batch())
        inside = method.corrupt(batch().image, Draws(torch_stream(0, "x"), 4))
    outside = method.corrupt(batch().image, Draws(torch_stream(0, "x"), 4))
    assert torch.equal(inside[0], outside[0])
    for name in full:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], full[name], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("size", "spent", "expected"),
    [
        (512, 0.14, 128), (512, 0.15, 256), (512, 0.35, 384), (512, 0.6, 512), (256, 0.0, 128), (256, 0.35, 192),
        (256, 1.0, 256), (384, 0.35, 288), (128, 0.0, 128),
    ],
)  # fmt: skip
def test_the_input_grows_at_constant_resolution(size, spent, expected):
    method = make(image_size=size, extent_floor=128)
    method.total_batches, method.batches_seen = 10_000, int(spent * 10_000)
    assert method.extent() == (expected, expected)


def test_images_that_are_not_square_are_cropped_and_scored_in_their_own_shape():
    method = make(image_size=[32, 48])
    assert method.extent() == (16, 16)
    method.total_batches = method.batches_seen = 1
    assert method.extent() == (32, 48)
    given = batch()._replace(image=torch.rand(2, 3, 32, 48))
    assert all(torch.isfinite(t) for t in method.objective(given).values())
    assert method.eval().score(given.image).maps.shape == (2, 1, 32, 48)


def test_symmetric_maps_turn_with_the_image_and_are_the_mean_over_its_views():
    method = make(symmetric_maps=True, smoothing_k=1).eval()
    image, turn = torch.rand(2, 3, SIDE, SIDE), torch.tensor([5, 2])
    maps = method.score(image).maps
    torch.testing.assert_close(method.score(apply_symmetry(image, turn)).maps, apply_symmetry(maps, turn))
    one_view = make(smoothing_k=1).eval()
    assert not torch.allclose(one_view.score(apply_symmetry(image, turn)).maps,
                              apply_symmetry(one_view.score(image).maps, turn), rtol=0.01)  # fmt: skip
    with torch.no_grad():
        codes = [torch.full((2,), code) for code in range(8)]
        turned = [apply_symmetry(image, code) for code in codes]
        views = [
            undo_symmetry((x - method.networks[0](x)).square().mean(1, True), code)
            for x, code in zip(turned, codes, strict=True)
        ]
    torch.testing.assert_close(maps, torch.stack(views).mean(0))


def test_occlusions_and_turns_are_joined_to_the_corruption_where_they_are_asked_for():
    assert isinstance(make().corruption(), Elastic)
    screw = make(occlusion_probability=0.5, symmetries="rotations")
    assert isinstance(screw.corruption(), Alternately) and screw.codes.tolist() == [0, 3, 5, 6]
    transistor = make(occlusion_probability=0.5, rotation_probability=0.3)
    assert isinstance(transistor.corruption(), Rotated) and isinstance(transistor.corruption().first, Alternately)
    assert isinstance(make(corruption="none").corruption(), Untouched)
    assert isinstance(make(corruption="cutout").corruption(), Cutout)
    assert isinstance(make(corruption="swap").corruption(), Swap)


@pytest.mark.parametrize(("rows", "world"), [(1, 1), (2, 2)])
def test_patches_are_not_swapped_within_batches_of_one_image(rows, world):
    method = make(corruption="swap")
    method._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(rows_per_batch=rows, training_batches=None), world_size=world
    )
    with pytest.raises(UserError, match=f"data.batch_size={2 * world}"):
        method.on_fit_start()


def test_swapped_patches_are_repaired_in_training():
    terms = make(corruption="swap", extent_shares=[1.0], extent_milestones=[0.0]).objective(batch(seed=2))
    assert terms["corrupted_region"] > 0


def test_foreign_images_fill_the_occluding_shapes(tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "red.png")
    method = make(corruption="occlusion", foreign=str(tmp_path))
    blue = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(4, 3, SIDE, SIDE)
    corrupted, mask = method.corrupt(blue, Draws(torch_stream(0, "x"), 4))
    torch.testing.assert_close(corrupted[:, :1], mask)
    torch.testing.assert_close(corrupted[:, 2:], 1 - mask)
    assert corrupted[:, 1].abs().max() == 0
    assert "bank" not in method.state_dict()


# -- validation ---------------------------------------------------------------------------------------------------


def test_validation_uses_fixed_corruptions_and_leaves_the_mode_and_statistics_alone():
    method = make().train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    first = method.validation_errors([batch(), batch(3, seed=1)])
    method.batches_seen = 7
    assert torch.equal(method.validation_errors([batch(), batch(3, seed=1)]), first)
    assert method.training
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert method.validation_errors([]) is None


def test_the_weights_with_the_best_validation_error_are_taken_back_for_scoring():
    method = make()
    bias = method.networks[0].head.bias
    for k, (error, value) in enumerate([(0.5, 1.0), (0.2, 2.0), (0.3, 3.0)]):
        method.batches_seen = k
        torch.nn.init.constant_(bias, value)
        method.select([error], groups(method))
    assert bias[0] == 3
    method.calibrate([])
    assert bias[0] == 2 and method.kept_at.tolist() == [1]


def test_the_kept_weights_are_a_copy_of_all_of_them_and_count_as_no_parameters():
    method = make(objectives=[1, 4])
    network = method.networks[1]
    assert sum(p.numel() for p in method.parameters()) == 2 * sum(p.numel() for p in network.parameters())
    network(batch().image)  # batch statistics belong to what is kept
    method.select([0.5, 0.5], groups(method))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(1 - batch().image)
    torch.nn.init.zeros_(network.head.weight)
    method.calibrate([])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_without_validation_the_last_weights_are_kept():
    method = make()
    torch.nn.init.constant_(method.networks[0].head.bias, 3.0)
    method.calibrate([])
    assert method.networks[0].head.bias[0] == 3


def test_the_learning_rate_is_halved_once_for_each_patience_without_improvement_and_not_below_its_floor():
    method, group = make(patience=20, smallest_rate=3e-5), groups(make())
    rates = []
    for k in range(0, 90, 10):
        method.batches_seen = k
        method.select([1.0 if k else 0.5], group)
        rates.append(group[0]["lr"])
    assert rates == [1e-4, 1e-4, 5e-5, 5e-5, 3e-5, 3e-5, 3e-5, 3e-5, 3e-5]


def test_without_patience_the_learning_rate_stays():
    method, group = make(patience=None), groups(make())
    for k in (0, 100, 10_000):
        method.batches_seen = k
        method.select([1.0 + k], group)
    assert group[0]["lr"] == 1e-4


def test_objective_4_keeps_the_latest_weights_within_tolerance_and_stops_when_its_error_stays_above():
    method = make(objectives=[4], tolerance_4=1.1, patience=20)
    group = groups(method)
    for k, error in [(10, 1.0), (20, 1.05), (30, 1.2), (40, 1.3)]:
        method.batches_seen = k
        method.select([error], group)
    assert method.kept_at.tolist() == [20]
    assert group[0]["lr"] == 0
    method.batches_seen = 80
    method.select([1.3], group)
    assert group[0]["lr"] == 0


def test_without_a_tolerance_the_last_weights_are_kept_and_a_schedule_replaces_the_halving():
    method = make(objectives=[4], tolerance_4=None, patience=20, schedule=lambda progress: 1 - progress)
    group = groups(method)
    for k, error in ((10, 0.1), (20, 0.5), (60, 0.9)):
        method.batches_seen = k
        method.select([error], group)
        assert int(method.kept_at[0]) == k
    assert group[0]["lr"] == 1e-4


def test_the_state_of_the_selection_is_in_the_checkpoint():
    method = make()
    method.batches_seen = 10
    method.select([0.25], groups(method))
    other = make()
    other.load_state_dict(method.state_dict())
    other.batches_seen = 20
    other.select([0.3], groups(other))
    assert other.kept_at.tolist() == [10]
    assert other.best_error.tolist() == [0.25]


def test_lightning_calls_the_validation_and_at_the_end_the_calibration():
    from pytorch_lightning import LightningDataModule, Trainer

    class Data(LightningDataModule):
        calls = 0

        def train_dataloader(self):
            return torch.utils.data.DataLoader([batch(seed=k) for k in range(4)], batch_size=None)

        def training_batches(self, device):
            return iter([batch()])

        def holdout_batches(self, device):
            self.calls += 1
            return iter([batch(2, seed=9)])

    method, data = make(validate_every=3), Data()
    method.total_batches = 4
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(max_epochs=1, enable_progress_bar=False, **options).fit(method, datamodule=data)
    assert data.calls == 3  # after batches 3 and 4, and after the last one
    assert bool(method.calibrated) and method.average_maps.any()
    assert method.kept_at.item() in (3, 4)


# -- scoring ------------------------------------------------------------------------------------------------------


def test_scores_have_the_shapes_of_the_contract_and_do_not_depend_on_the_rest_of_the_batch():
    method = make(average_exponent=1).eval()
    scores = method.score(batch(5).image)
    assert scores.image.shape == (5,) and scores.maps.shape == (5, 1, SIDE, SIDE)
    alone = method.score(batch(5).image[2:3])
    torch.testing.assert_close(alone.image[0], scores.image[2], rtol=1e-4, atol=0)
    torch.testing.assert_close(alone.maps[0], scores.maps[2], rtol=1e-3, atol=1e-6)


def test_scores_are_float32_under_autocast():
    method = make().eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = method.score(batch().image)
    assert torch.equal(half.image, method.score(batch().image).image)


def test_a_network_that_returns_its_input_scores_zero():
    method = make().eval()
    method.networks[0].forward = lambda image: image
    assert method.score(batch().image).image.abs().max() == 0


@pytest.mark.parametrize("difference", ["squared", "ssim", "logit"])
def test_the_ensembles_map_is_the_pixelwise_maximum_of_its_members(difference):
    method = make(objectives=[1, 4], difference=difference).eval()
    image = batch().image
    maps, members = method.score(image).maps, method._maps(image)
    assert all((maps >= member).all() for member in members)
    torch.testing.assert_close(maps, torch.maximum(*members))
    torch.testing.assert_close(method.score(image).image, maps.sum(dim=(1, 2, 3)))


def test_the_average_map_is_the_mean_over_held_out_images_and_discounts_their_errors():
    plain, corrected = (make(average_exponent=t).eval() for t in (0, 1))
    held_out = [batch(3, seed=1), batch(2, seed=2)]
    corrected.calibrate(iter(held_out))
    images = torch.cat([b.image for b in held_out])
    torch.testing.assert_close(corrected.average_maps[0], corrected._maps(images)[0].mean(dim=0))
    before, after = (m.score(batch().image).maps for m in (plain, corrected))
    torch.testing.assert_close(after, before * (1 - corrected.average_maps[0]))
    with pytest.raises(UserError, match="average map"):
        corrected.score(torch.rand(1, 3, 40, 40))


def plain_images(rows: int, seed: int) -> torch.Tensor:
    """One grey level each, between 0.3 and 0.5."""
    return (
        torch.rand(rows, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).mul(0.2).add(0.3).expand(-1, 3, 16, 16)
    )


def test_after_a_short_training_a_corrupted_image_outscores_clean_ones_and_the_map_shows_where():
    method = make(image_size=16, width=1 / 8, corruption="cutout")
    method.total_batches = 60
    optimizer = torch.optim.Adam(method.trained_parameters(), lr=3e-3)
    for k in range(60):
        method.batches_seen = k
        terms = method.objective(batch(8)._replace(image=plain_images(8, seed=k)))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    clean, damaged = plain_images(8, seed=-1), plain_images(8, seed=-1).clone()
    damaged[:, :, 4:10, 5:11] = 0.9
    method.eval()
    with torch.no_grad():
        normal, anomalous = method.score(clean), method.score(damaged)
    assert anomalous.image.min() > normal.image.max()
    assert (
        anomalous.maps[..., 5:9, 6:10].mean(dim=(1, 2, 3)) > 2 * anomalous.maps[..., 12:, :].mean(dim=(1, 2, 3))
    ).all()


# -- what a user can get wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, r"divisible by 8.*image_size=96"),
        ({"objectives": [2]}, r"\[1\], \[4\] or \[1,4\]"),
        ({"lambda_1": 1.5}, "lambda_1"),
        ({"corruption": "smear"}, "elastic or occlusion or cutout or swap or none"),
        ({"difference": "l1"}, "squared or ssim or logit"),
        ({"smoothing_k": 4}, "odd k"),
        ({"extent_milestones": [0.1, 0.2, 0.3, 0.4]}, "rise from 0"),
        ({"tolerance_4": 0.9}, "at least 1"),
        ({"corruption": "occlusion", "foreign": "/nowhere"}, "found none"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_type(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_the_default_mean_filter_is_the_odd_number_nearest_to_a_32nd_of_the_side():
    sides = {512: 17, 384: 13, 256: 9, 128: 5, 32: 1}
    assert {side: make(image_size=side, smoothing_k=None).smoothing_k for side in sides} == sides


def test_two_ranks_see_the_corruption_of_the_joined_batch():
    method = make()
    clean = batch(8).image
    whole = method.corrupt(clean, Draws(method.stream("corruption"), 8))[0]
    method._trainer = SimpleNamespace(world_size=2, global_rank=1)
    part = method.corrupt(clean[1::2], Draws(method.stream("corruption"), 4, rank=1, world=2))[0]
    torch.testing.assert_close(part, whole[1::2], rtol=0, atol=1e-6)
