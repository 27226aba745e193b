"""What reaches the dashboards, read back from what was written."""

import struct

from conftest import metrics_of

SMALL = ("method=cbigan/small", "data=mvtec/bottle", "data.batch_size=4")


def wandb_records(path):
    """The protobuf records of an offline run: a 7-byte header, then 32 KiB blocks of length-and-type framed chunks."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            record = proto.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_gets_group_tags_config_terms_metrics_and_pictures(run):
    code, folder = run(*SMALL, "logger=wandb")
    assert code == 0
    (file,) = folder.rglob("*.wandb")
    records = list(wandb_records(file))
    (started,) = [r.run for r in records if r.HasField("run")][:1]
    assert started.run_group.startswith("cbigan-small/mvtec/bottle/one_class/none/")  # and what was changed, as a hash
    assert f"seed0-{started.run_group.rsplit('/', 1)[1]}" == folder.name
    assert {"cbigan/small", "mvtec/bottle", "one_class", "none", "budget:smoke"} <= set(started.tags)
    assert started.display_name.endswith("seed0")
    config = {item.key for item in started.config.update}
    config |= {item.key for r in records if r.HasField("config") for item in r.config.update}
    assert {"method", "data", "seed"} <= config
    keys = {".".join(item.nested_key) or item.key for r in records if r.HasField("history") for item in r.history.item}
    assert "train/critic/wasserstein" in keys
    assert "train/encoder_generator/image_consistency" in keys
    assert "test/image_auroc" in keys
    assert any(key.startswith("figures/panels") for key in keys)
    assert any(key.startswith("figures/roc") for key in keys)


def test_in_a_sweep_each_job_is_a_run_of_its_own_and_seeds_of_one_setting_share_a_group(run, tmp_path):
    code, _ = run("-m", "method=pca", "data=digits", "data.normal_class=0,1", "logger=wandb", "seed=0,1")
    assert code == 0
    files = list((tmp_path / "results").rglob("*.wandb"))
    runs = [next(r.run for r in wandb_records(f) if r.HasField("run")) for f in files]
    assert len({r.display_name for r in runs}) == 4
    assert {r.display_name[-5:] for r in runs} == {"seed0", "seed1"}
    groups = [r.run_group for r in runs]
    assert sorted(groups.count(g) for g in set(groups)) == [2, 2]


def test_tensorboard_gets_terms_and_metrics(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, folder = run(*SMALL, "logger=tensorboard")
    assert code == 0
    scalars, images = set(), set()
    for file in folder.rglob("events.out.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        scalars |= set(events.Tags()["scalars"])
        images |= set(events.Tags()["images"])
    assert {"train/critic/wasserstein", "test/image_auroc"} <= scalars
    assert "figures/panels" in images


def test_the_csv_log_has_a_curve_for_each_term(run):
    _, folder = run(*SMALL)
    header = next(folder.glob("logs/*/metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train/critic/wasserstein", "train/critic/gradient_penalty"} <= set(header)
    assert metrics_of(folder)["status"] == "finished"
