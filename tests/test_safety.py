"""What comes from someone else's run folder or archive is data, never code."""

import io
import pickle
import re
import tarfile

import pytest
import torch
import yaml

import adbench
from adbench.data.classes import unpack
from adbench.experiment.groups import conf_dir
from adbench.experiment.reevaluation import evaluate
from adbench.experiment.trust import check, trusted
from adbench.types import UserError

HOSTILE = {
    "a shell": {"_target_": "os.system", "_args_": ["touch {mark}"]},
    "a shell behind this package": {"_target_": "adbench.data.cache.os.system", "_args_": ["touch {mark}"]},
    "an import of this package": {"_target_": "adbench.data.cache.Path"},
    "a writer of this package": {"_target_": "adbench.files.write_text", "path": "{mark}", "text": "x"},
    "a private function": {"_target_": "adbench.data.cache._build"},
    "torch's own loader": {"_target_": "torch.load", "f": "{mark}", "weights_only": False},
    "not an optimizer": {"_target_": "torch.optim.lr_scheduler.os.system", "_args_": ["touch {mark}"]},
    "hydra": {"_target_": "hydra.utils.call"},
    "no text": {"_target_": ["os.system"]},
    "built by a resolver": "${{oc.create:'{{_target_: os.system}}'}}",
}


def marked(node, mark):
    return yaml.safe_load(yaml.safe_dump(node).replace("{mark}", str(mark)).replace("{{", "{").replace("}}", "}"))


@pytest.fixture
def trained(finished):
    return finished("method=pca", "data=digits")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["method", "method.optimizer", "method.list", "data.source", "protocol", "partial"])
def test_a_hostile_target_in_a_run_folder_is_refused_wherever_it_stands(trained, tmp_path, name, place):
    mark = tmp_path / "mark"
    node = marked(HOSTILE[name], mark)
    cfg = yaml.safe_load((trained / ".hydra/config.yaml").read_text())
    if place == "partial" and isinstance(node, dict):
        node = node | {"_partial_": True}
    if place in ("method.optimizer", "partial"):
        cfg["method"]["optimizer"] = node
    elif place == "method.list":
        cfg["method"]["_args_"] = [{"deep": [node]}]
    elif place == "data.source":
        cfg["data"]["source"] = node
    else:
        cfg[place] = node
    (trained / ".hydra/config.yaml").write_text(yaml.safe_dump(cfg))
    built = place.startswith(("method", "partial")) or isinstance(node, str)
    if built:
        with pytest.raises(UserError):
            adbench.load(trained)
    else:  # scoring builds the method alone, and looks at nothing else
        adbench.load(trained)
    with pytest.raises(UserError):
        evaluate(trained)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["target", "test_target"])
def test_a_data_sets_own_target_is_looked_at_too(trained, tmp_path, key):
    cfg = yaml.safe_load((trained / ".hydra/config.yaml").read_text())
    cfg["data"]["source"] = {
        "_target_": "adbench.data.dataset.DatasetSource", "target": "adbench.data.folder.Folder",
        "arguments": {"command": f"touch {tmp_path / 'mark'}"}, key: "os.system",
    }  # fmt: skip
    (trained / ".hydra/config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(UserError, match=r"os\.system .*--trust os"):
        evaluate(trained)
    assert not (tmp_path / "mark").exists()


def test_a_data_sets_own_target_cannot_be_handed_over_without_its_name(trained, tmp_path):
    cfg = yaml.safe_load((trained / ".hydra/config.yaml").read_text())
    cfg["data"]["source"] = {
        "_target_": "adbench.data.dataset.DatasetSource",
        "_args_": ["subprocess.Popen", {"args": ["touch", str(tmp_path / "mark")]}],
    }
    (trained / ".hydra/config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(UserError):
        evaluate(trained)
    assert not (tmp_path / "mark").exists()


def test_an_optimizer_that_nobody_trusts_is_no_reason_not_to_score(finished):
    """A run of somebody's own optimizer is scored as any other; the factory itself is never called."""
    folder = finished("method=autoencoder", "method.width=8", "data=digits")
    image = torch.rand(2, 3, 32, 32)
    wanted = adbench.load(folder).score(image).image
    cfg = yaml.safe_load((folder / ".hydra/config.yaml").read_text())
    cfg["method"]["optimizer"] = {"_target_": "os.system", "_partial_": True, "command": "true"}
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(cfg))
    detector = adbench.load(folder)
    assert torch.equal(detector.score(image).image, wanted)
    with pytest.raises(UserError, match=r"loaded without os\.system"):
        detector.engine.method.configure_optimizers()


def test_a_logger_and_a_callback_that_nobody_trusts_are_no_reason_not_to_score_or_evaluate(trained):
    """They belong to the training, so nothing that loads a run builds them."""
    cfg = yaml.safe_load((trained / ".hydra/config.yaml").read_text())
    cfg["logger"] = {"theirs": {"_target_": "os.system", "command": "true"}}
    cfg["callbacks"] = {"theirs": {"_target_": "os.system", "command": "true"}}
    (trained / ".hydra/config.yaml").write_text(yaml.safe_dump(cfg))
    assert adbench.load(trained).score(torch.rand(2, 3, 32, 32)).image.shape == (2,)
    record, folder = evaluate(trained)
    assert record["status"] == "evaluation" and (folder / "scores.csv").exists()


def test_who_trusts_a_package_says_so_by_its_name_and_gets_what_it_defines_alone():
    node = {"optimizer": {"_target_": "timm.optim.Lion", "_partial_": True}}
    with pytest.raises(UserError, match="add --trust timm"):
        check(node, "here")
    assert check({"_target_": "timm.optim.lion.Lion"}, "here", trust=["timm"])
    assert check(node, "here", trust=["timm"])
    assert not trusted("timm.optim.lion.torch", ["timm"])
    assert not trusted("timmy.optim.Lion", ["timm"])


def test_every_target_of_the_configuration_tree_is_trusted():
    never = ("logger", "callbacks")  # which are never built from a run folder
    files = (p for p in conf_dir().rglob("*.yaml") if p.parent.name not in never)
    targets = {t for p in files for t in re.findall(r"_target_: ([\w.]+)", p.read_text())}
    targets = {t for t in targets if not t.startswith("hydra_plugins.")}  # launchers and sweepers: in no run folder
    assert len(targets) > 20
    for target in targets - {"null"}:
        check({"method": {"_target_": target}}, "conf")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_checkpoint_that_would_run_code_is_not_loaded(trained, tmp_path):
    mark = tmp_path / "mark"
    for file in (trained / "checkpoints").iterdir():
        torch.save({"state_dict": Payload(mark), "batches_seen": 0}, file)
    with pytest.raises(UserError, match="cannot be read"):
        adbench.load(trained)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # it would have
    assert mark.exists()


def test_released_weights_are_safetensors_and_hold_a_trusted_configuration(trained, tmp_path):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    from adbench.detection.graph import export

    path, _ = export(trained, "safetensors", tmp_path / "w.safetensors")
    images = torch.rand(4, 3, 20, 20)
    assert torch.equal(adbench.load(path).score(images).image, adbench.load(trained).score(images).image)
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["adbench"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    note["config"]["method"]["optimizer"] = {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'mark'}"]}
    save_file(state, path, {"adbench": json.dumps(note)})
    with pytest.raises(UserError, match=r"os\.system"):
        adbench.load(path)
    assert not (tmp_path / "mark").exists()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="holds no weights"):
        adbench.load(path)


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/adbench-absolute.txt", "sub/../../out.txt"])
def test_an_archive_cannot_leave_its_folder(tmp_path, name):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.size = 3
        file.addfile(entry, io.BytesIO(b"abc"))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="leave"):
        unpack(archive, tmp_path / "in")
    assert not (tmp_path / "out.txt").exists()


def test_a_link_in_an_archive_cannot_point_out_of_its_folder(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as file:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    with pytest.raises(UserError, match="leave"):
        unpack(archive, tmp_path)
    assert not (tmp_path / "link").exists()


def test_an_honest_archive_is_unpacked(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        file.add(tmp_path / "x.txt", "folder/x.txt")
    unpack(tmp_path / "a.tar.gz", tmp_path / "in")
    assert (tmp_path / "in/folder/x.txt").read_text() == "hello"


def test_nothing_loads_pickles():
    """Every call of torch.load or numpy.load in the package refuses objects."""
    import ast
    from pathlib import Path

    package = Path(adbench.__file__).parent
    calls = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = getattr(node.func.value, "id", "")
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                if owner == "torch":
                    calls += 1
                    assert given.get("weights_only") is True, path
                assert owner != "pickle", path
                assert not (owner == "np" and given.get("allow_pickle")), path
    assert calls >= 3
