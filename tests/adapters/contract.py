"""What the models of anomalib keep of a method's promises, found out by running them, for docs/adapters.md.

    python tests/adapters/contract.py            # print the table
    python tests/adapters/contract.py --write    # and put it into the page

Two processes share the models; then both train each of them together, as two devices of one group.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adapters.md"
COLUMNS = ("fits", "maps", "row by row", "reload", "resume", "export", "bf16", "two devices")
BATCHES = 3

RESNET = {"backbone": "resnet18"}
DINO = "vit_small_patch14_dinov2"
# Side of the images, training batches' rows, options: the least that a model takes, so that all fit into minutes.
SMALL: dict[str, dict] = {
    "AnomalyDINO": {"side": 56},
    "Cfa": {"options": RESNET},
    "Cflow": {"options": RESNET | {"coupling_blocks": 2, "layers": ["layer2", "layer3"], "fiber_batch_size": 16}},
    "Csflow": {"side": 128, "options": {"cross_conv_hidden_channels": 32, "n_coupling_blocks": 2}},
    "Dfkde": {"options": {"n_pca_components": 4}},
    "Dfm": {"options": RESNET},
    "Dinomaly": {"side": 56, "options": {"encoder_name": DINO, "decoder_depth": 8}},
    "Draem": {"images": "noise", "side": 32},
    "EfficientAd": {"images": "pictures", "rows": 1, "side": 256},
    "FoundAD": {"side": 56, "options": {"encoder_name": "dinov2_vit_small_14"}},
    "Fre": {"options": RESNET | {"input_dim": 1024, "latent_dim": 20}},
    "GeneralAD": {"side": 56, "options": {"backbone": DINO, "layers": [12]}},
    "Glass": {"images": "noise", "options": RESNET | {"pretrain_embed_dim": 64, "target_embed_dim": 64, "step": 3}},
    "L2BT": {"side": 56},
    "InpFormer": {"side": 56, "options": {"encoder_name": DINO}},
    "MHPatchcore": {"options": RESNET | {"memory_bank_size": 50, "local_coreset_size": 16}},
    "Padim": {"options": RESNET | {"n_features": 20}},
    "Patchcore": {"options": RESNET},
    "Patchflow": {"side": 128, "options": RESNET | {"num_scales": 2}},
    "Rad": {"options": {"backbone": "vit_small_patch16_dinov3", "layers": [3, 6, 9, 11]}},
    "ReverseDistillation": {"options": RESNET},
    "SuperADD": {"options": {"backbone": "vit_small_patch16_dinov3", "layers": [3, 6, 9, 11], "patch_size": 64}},
    "Supersimplenet": {"side": 128, "options": RESNET},
    "Uflow": {"side": 256, "options": RESNET | {"flow_steps": 1}},
    "UniNet": {"options": {"student_backbone": "resnet50", "teacher_backbone": "resnet50"}},
}
FIXED = "its code takes the number of images for a constant"
# Why a cell is not "yes", in a few words.
NOTES: dict[str, str] = {
    "Cflow": "its map is scaled by the batch's largest value, so rows are scored one by one, which is no graph",
    "Dfkde": FIXED,
    "Dfm": FIXED,
    "Fre": FIXED,
    "Glass": FIXED,
    "InpFormer": "its gradients are changed by hooks that know float32 alone",
    "MHPatchcore": FIXED,
    "Rad": "rows are scored one by one, which is no graph",
}


def quiet() -> None:
    import lightning  # noqa: F401  (which sets its loggers' levels)
    import pytorch_lightning  # noqa: F401
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "anomalib", "adbench", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"


class Subject:
    """One model with images of stripes."""

    def __init__(self, model: str, place: Path) -> None:
        small = SMALL.get(model, {})
        self.model, self.place, self.side = model, place, small.get("side", 64)
        self.options, self.rows, self.images = small.get("options"), small.get("rows", 3), small.get("images")
        if self.images == "pictures":
            self.images = str(pictures(place / "pictures"))

    def build(self, seed: int = 0):
        import pytorch_lightning as pl

        from adbench.methods.anomalib_model import AnomalibModel

        pl.seed_everything(seed, workers=True, verbose=False)
        return AnomalibModel(self.model, self.options, self.side, self.images)

    def data(self, method, *_):
        """Stripes in batches that the model takes, cut like `adbench.testing.stripes`."""
        from functools import partial

        from adbench.data.datamodule import DataModule
        from adbench.data.protocols import one_class
        from adbench.testing import Stripes

        return DataModule(
            Stripes(self.side), partial(one_class, holdout=0.25), image_size=self.side, batch_size=self.rows,
            eval_batch_size=4, workers=0, seed=0, cache_dir=self.place / "cache", supervision=method.supervision,
        )  # fmt: skip


def pictures(folder: Path) -> Path:
    """A folder of images of anything else."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(4):
        rows = np.random.default_rng(k).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(rows).save(folder / f"{k}.png")
    return folder


# -- the cells --------------------------------------------------------------------------------------------------------


def cells(model: str, place: Path) -> dict[str, str]:
    """Column -> "yes", "no", or "-" where there is nothing to look at."""
    import torch

    from adbench import testing

    subject, found, reasons = Subject(model, place), dict.fromkeys(COLUMNS, "no"), {}

    def holds(column: str, check) -> None:
        try:
            result = check()
        except Exception as error:  # any failure is a cell, and its reason is printed
            reasons[column] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
                :300
            ]
            return
        found[column] = {None: "yes", True: "yes", False: "no"}.get(result, result)

    whole = subject.build()
    bank = whole.known.bank
    data = subject.data(whole)

    def fits():
        testing.fit(whole, data, BATCHES)
        with torch.no_grad():
            return bool(torch.isfinite(whole.score(testing.images_under_test(data)).image).all())

    holds("fits", fits)
    if found["fits"] != "yes":
        return found | {"reasons": reasons}
    image = testing.images_under_test(data)

    def maps():
        with torch.no_grad():
            scores = whole.score(image)
        assert (scores.maps is not None) == whole.has_maps
        return "-" if scores.maps is None else scores.maps.shape == (len(image), 1, *image.shape[2:])

    holds("maps", maps)
    holds("row by row", lambda: testing.check_scores(whole, image, 1e-4))
    holds("reload", lambda: testing.check_state(whole, subject.build(1), image))
    if bank:
        found["resume"] = found["bf16"] = "-"
    else:
        holds("resume", lambda: resumed(subject, whole))
        holds("bf16", lambda: mixed(subject))
    holds("export", lambda: exported(whole, subject))
    return found | {"reasons": reasons}


def resumed(subject: Subject, whole) -> None:
    """`adbench.testing.check_resume` with batches that the model takes."""
    from adbench import testing

    with testing_stripes(subject):
        testing.check_resume(whole, subject.build, subject.side, BATCHES, subject.place)


@contextlib.contextmanager
def testing_stripes(subject: Subject):
    from adbench import testing

    before, testing.stripes = testing.stripes, subject.data
    try:
        yield
    finally:
        testing.stripes = before


def mixed(subject: Subject) -> bool:
    import torch

    from adbench import testing

    method = subject.build()
    data = subject.data(method)
    testing.fit(method, data, 1, precision="bf16-mixed")
    with torch.no_grad():
        scores = method.score(testing.images_under_test(data))
    same = all(p.dtype == torch.float32 for p in method.parameters())
    return same and bool(torch.isfinite(scores.image).all())


def exported(method, subject: Subject) -> None:
    """A graph of torch.export, which ONNX is made of, for any number of images of any size."""
    from adbench.detection.graph import save_graph

    card = {"method": subject.model, "input": {"size": [subject.side] * 2, "features": None}}
    save_graph(method, card, "torch-export", subject.place / f"{subject.model}.pt2")


def together(model: str, place: Path) -> str:
    """Two devices train the model; afterwards both have the same weights."""
    import pytorch_lightning as pl
    import torch
    import torch.distributed as dist

    from adbench.experiment.checkpoints import WholeFiles
    from adbench.experiment.training import complete

    subject = Subject(model, place)
    method = subject.build()
    data = subject.data(method)
    rank, world = int(os.environ["RANK"]), 2
    data.batch_size = 2 * world if subject.rows > 1 else world
    data.rank_and_world = rank, world
    method.total_batches = 2
    data.set_budget(2)
    if not method.known.bank:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            plugins=[WholeFiles()], use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(method, datamodule=data)
    else:
        data.setup()
    complete(method, data, "cpu")
    for name, value in method.state_dict().items():
        other = value.detach().clone()
        dist.broadcast(other, 0)
        if not torch.equal(other, value) and "running_" not in name and "num_batches" not in name:
            raise AssertionError(f"{name} differs between the devices")
    return "yes"


# -- the processes ----------------------------------------------------------------------------------------------------


def work(rank: int, models: list[str], out: Path, place: Path) -> None:
    """One of two processes: its share of the models alone, then all of them with the other process."""
    import torch.distributed as dist

    quiet()
    place = place / str(rank)
    place.mkdir(parents=True, exist_ok=True)
    table = {}
    for model in models[rank::2]:
        started = time.perf_counter()
        try:
            table[model] = cells(model, place)
        except Exception as error:
            table[model] = dict.fromkeys(COLUMNS, "no") | {"reasons": {"all": f"{type(error).__name__}: {error}"[:300]}}
        print(f"{model} {time.perf_counter() - started:.1f} s {table[model]}", flush=True)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=10))
    for model in models:
        try:
            answer, reason = together(model, place), ""
        except Exception as error:
            answer, reason = "no", f"{type(error).__name__}: {error}"[:300]
        answers = [None, None]
        dist.all_gather_object(answers, answer)
        if model in table:
            table[model]["two devices"] = "yes" if answers == ["yes", "yes"] else "no"
            if reason:
                table[model]["reasons"]["two devices"] = reason
        print(f"{model} on two devices: {answers} {reason}", flush=True)
    out.write_text(json.dumps(table))


def measured(models: list[str]) -> dict[str, dict]:
    """Model -> its cells and the reasons for what does not hold, by two processes."""
    with tempfile.TemporaryDirectory() as place, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        outs = [Path(place) / f"{rank}.json" for rank in range(2)]
        common = os.environ | {
            "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        running = []
        for rank in range(2):
            command = [sys.executable, __file__, "--rank", str(rank), "--out", str(outs[rank]), "--place", place]
            env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen([*command, *models], env=env))
        codes = [one.wait() for one in running]
        assert codes == [0, 0], f"the processes ended with {codes}"
        found: dict[str, dict] = {}
        for out in outs:
            found |= json.loads(out.read_text())
    return dict(sorted(found.items()))


# -- the page ---------------------------------------------------------------------------------------------------------


def as_markdown(table: dict[str, dict]) -> str:
    lines = [f"| model | {' | '.join(COLUMNS)} | note |", "|---" * (len(COLUMNS) + 2) + "|"]
    for model, found in table.items():
        lines.append(f"| {model} | {' | '.join(found[c] for c in COLUMNS)} | {NOTES.get(model, '')} |")
    return "\n".join(lines)


def between(text: str, name: str) -> str:
    """What the page has between the markers of a table."""
    return re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.S)[1]


def replaced(text: str, name: str, table: str) -> str:
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)


def settings() -> str:
    """The models that have a configuration of their own, with what it says of them."""
    import yaml

    folder = ROOT / "conf" / "method" / "anomalib"
    lines = ["| method | what | side | batch | length of `budget=paper` |", "|---|---|---|---|---|"]
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder.parent).with_suffix("").as_posix()
        values = yaml.safe_load(path.read_text())
        head = re.split(r"\n_target_|\ndefaults", path.read_text())[0].removeprefix("# ").replace("\n# ", " ")
        what = re.split(r"(?<!al)\.(?: |$)", head)[0]
        small = path.parent != folder  # what it leaves out is that of the model's own file
        base = yaml.safe_load((folder / f"{path.parent.name}.yaml").read_text()) if small else values
        recipe = {part: base["recipe"][part] for part in ("input", "batch_size", "budget")}
        for part, own in values.get("recipe", {}).items():
            recipe[part] = recipe[part] | own if isinstance(own, dict) else own
        ((unit, length),) = recipe["budget"]["paper"].items()
        paper = "one pass" if length == 0 else f"{length} {unit.removeprefix('max_')}"
        link = f"[`{name}`](../conf/method/{name}.yaml)"
        lines.append(f"| {link} | {what} | {recipe['input']['object']} | {recipe['batch_size']} | {paper} |")
    return "\n".join(lines)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from adbench.methods.anomalib_zoo import usable

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=usable())
    parser.add_argument("--write", action="store_true", help="put the tables into docs/adapters.md")
    parser.add_argument("--settings", action="store_true", help="the table of settings alone, which runs nothing")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options.rank, options.models, options.out, options.place)
        return
    text = replaced(PAGE.read_text(), "settings", settings())
    if not options.settings:
        started = time.perf_counter()
        table = measured(options.models)
        print(as_markdown(table))
        for model, found in table.items():
            print(model, found["reasons"])
        print(f"{time.perf_counter() - started:.0f} s")
        text = replaced(text, "contract", as_markdown(table))
    if options.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
