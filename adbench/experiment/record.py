"""What metrics.json holds: one place for its keys, their types and their documentation.

Readers take the file as it is, plain JSON. Docs/run_folder.md has the table that `documentation` makes.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

if TYPE_CHECKING:
    from adbench.evaluation.session import Measurement
    from adbench.evaluation.thresholds import Decisions, Threshold

#: Stands for what a run does not know yet or never will; such a key is left out of the file.
UNKNOWN: Any = object()


class Counts(TypedDict, total=False):
    """Rows and weights."""

    train: Annotated[int, "training rows"]
    train_known_normal: Annotated[int, "training rows that are known as normal (semi-supervised)"]
    train_known_anomalous: Annotated[int, "training rows that are known as anomalous (semi-supervised)"]
    holdout: Annotated[int, "held-out normal rows"]
    test_normal: Annotated[int, "normal test rows"]
    test_anomalous: Annotated[int, "anomalous test rows"]
    parameters: Annotated[int, "numbers in the method's weights, copies such as moving averages left out"]


class Times(TypedDict, total=False):
    """When, in UTC (ISO 8601), and how long, in seconds."""

    started: Annotated[str, "when the run began first; a resumed run keeps it"]
    finished: Annotated[str | None, "when it ended, whatever the status"]
    pretraining_s: Annotated[float, "seconds of the pretraining, where there is one"]
    prepare_s: Annotated[
        float,
        "seconds of the pass through the training rows before the first batch, a part of `train_s`, or in place of any",
    ]
    train_s: Annotated[float, "seconds of the training by the last command"]
    test_s: Annotated[float, "seconds of the test, pictures included"]
    total_s: Annotated[float, "seconds of the last command from start to end"]


class Hardware(TypedDict, total=False):
    """The machine."""

    cpu: Annotated[str, "name of the processor"]
    cpu_capability: Annotated[
        str, "vector instructions that torch computes with, `+bf16` if the processor has bfloat16 (`AVX512+bf16`)"
    ]
    cores: Annotated[int | None, "cores of the machine"]
    threads: Annotated[int, "CPU threads of each of the run's processes"]
    gpus: Annotated[list[str], "names of the GPUs that the run could see"]
    ranks: Annotated[int, "devices that trained together"]


class Commit(TypedDict):
    """The checkout that ran."""

    commit: Annotated[str, "its commit"]
    modified: Annotated[bool, "whether tracked files differed from it"]


class Budget(TypedDict):
    """Length of the training."""

    name: Annotated[str, "name of the budget, `budget=NAME`"]
    batches: Annotated[int, "training batches; 0 for a method that does not learn by gradients"]
    batch_size: Annotated[int, "rows of a batch, over all ranks"]


class Objectives(TypedDict):
    """What a tuner may look at: held-out normal rows, no test row and no label."""

    holdout_score: Annotated[float | None, "mean score of the held-out normal rows; null without such rows"]


@dataclass
class RunRecord:
    """The contents of metrics.json. A run fills it from its first batch on; an evaluation of a run has a part of it."""

    method: Annotated[str, "as in `method=NAME`"] = ""
    data: Annotated[str, "as in `data=NAME`; of an evaluation the `data_id`"] = ""
    protocol: Annotated[str, "as in `protocol=NAME`"] = ""
    pretraining: Annotated[str, "as in `pretraining=NAME`"] = ""
    seed: Annotated[int, "as in `seed=N`"] = UNKNOWN
    config_hash: Annotated[str, "one name for all values that can change the result"] = UNKNOWN
    status: Annotated[str, "`running`, `finished`, `failed` or `interrupted`; `evaluation` in `evaluations/`"] = UNKNOWN
    error: Annotated[str | None, "why the run failed or was interrupted"] = UNKNOWN
    selection: Annotated[str, "which weights are tested"] = UNKNOWN
    metrics: Annotated[
        dict[str, float | None],
        "name -> fraction in 0..1, null where undefined; further scores of the method as `ablation/<name>`, a "
        "published program's numbers as `released/<name>`",
    ] = field(default_factory=dict)
    counts: Annotated[Counts, "rows and weights"] = field(default_factory=Counts)
    time: Annotated[Times, "when and how long"] = field(default_factory=Times)
    hardware: Annotated[Hardware, "the machine"] = field(default_factory=Hardware)
    versions: Annotated[dict[str, str], "package -> version"] = UNKNOWN
    git: Annotated[Commit | None, "the checkout that ran; null outside one"] = UNKNOWN
    code: Annotated[
        str, "hash of the code behind the figures; two hashes joined by + where a run went on with other code"
    ] = UNKNOWN
    attempt: Annotated[str, "ties checkpoints to this file: those of an overwritten run have another"] = UNKNOWN
    changed: Annotated[dict[str, Any], "values that differ from the chosen presets, by dotted name"] = UNKNOWN
    data_fingerprint: Annotated[str, "hash of the data set's contents, labels and names of rows"] = UNKNOWN
    data_id: Annotated[str, "name of the data set with its class or, for `data=folder`, the user's own name"] = UNKNOWN
    budget: Annotated[Budget, "length of the training"] = UNKNOWN
    precision: Annotated[
        str, "number format of the training, as in `trainer.precision`; what `auto` found. Scores are float32 always"
    ] = UNKNOWN
    compiled: Annotated[
        bool, "whether the networks were compiled for the training: `trainer.compile=true`, and it worked here"
    ] = UNKNOWN
    data_kind: Annotated[str, "object, texture, small or tabular"] = UNKNOWN
    normal_class: Annotated[Any, "the normal class of a class data set, else null"] = UNKNOWN
    data_report: Annotated[dict[str, Any], "what is odd about the data, by kind, counted and named"] = UNKNOWN
    pretraining_weights: Annotated[dict[str, Any], "weights that the pretraining loaded: name and origin"] = UNKNOWN
    transductive: Annotated[bool, "true where a row's score depends on the rows that are scored with it"] = UNKNOWN
    pretraining_images: Annotated[dict[str, Any], "images that a teacher was distilled on"] = UNKNOWN
    threshold: Annotated[Threshold | None, "above which a row is called anomalous; null without held-out rows"] = (
        UNKNOWN
    )
    map_range: Annotated[
        list[float] | None, "median and 99.8 % quantile of the pixels of held-out normal maps: where overlays begin"
    ] = UNKNOWN
    objectives: Annotated[Objectives, "what a tuner may look at"] = UNKNOWN
    decisions: Annotated[
        Decisions | None, "what the threshold makes of the test rows; null without a threshold or without test rows"
    ] = UNKNOWN
    per_defect_image_auroc: Annotated[
        dict[str, float], "defect kind -> image AUROC of its rows against all normal rows"
    ] = UNKNOWN
    image_auroc_interval_95: Annotated[
        tuple[float, float] | None, "95 % bootstrap interval of `image_auroc`, [low, high]"
    ] = UNKNOWN
    trained_on: Annotated[str, "of an evaluation: the `data_id` that the run was trained on"] = UNKNOWN

    def take(self, measurement: Measurement) -> None:
        """Fill in what a test has measured."""
        self.metrics = measurement.metrics
        self.per_defect_image_auroc = measurement.per_defect
        self.image_auroc_interval_95 = measurement.interval
        self.decisions = measurement.decisions
        self.time["test_s"] = measurement.seconds

    def as_json(self) -> dict[str, Any]:
        """What is known, as plain values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not UNKNOWN}


def count(datamodule: Any, method: Any) -> Counts:
    """The rows of a data module that is set up, and the weights of a method."""
    from adbench.networks.averaging import WeightAverage

    split, label = datamodule.split, datamodule.records.label
    averages = [module for module in method.modules() if isinstance(module, WeightAverage)]  # copies of other weights
    copies = {id(p) for module in averages for p in module.parameters()}
    return Counts(
        train=len(split.train),
        train_known_normal=int((split.semi_label == 1).sum()),
        train_known_anomalous=int((split.semi_label == -1).sum()),
        holdout=len(split.holdout),
        test_normal=int((label[split.test] == 0).sum()),
        test_anomalous=int((label[split.test] == 1).sum()),
        parameters=sum(p.numel() for p in method.parameters() if id(p) not in copies),
    )


def keys() -> dict[str, str]:
    """Every documented key of metrics.json, those of inner objects as `outer.inner`, with its meaning."""
    from adbench.evaluation.thresholds import Decisions, Threshold

    return _meanings(RunRecord, {"Decisions": Decisions, "Threshold": Threshold})


def _meanings(owner: type, names: dict[str, Any], prefix: str = "") -> dict[str, str]:
    meanings: dict[str, str] = {}
    for name, annotation in typing.get_type_hints(owner, localns=names, include_extras=True).items():
        kind, meaning = typing.get_args(annotation)
        meanings[prefix + name] = meaning
        for part in (kind, *typing.get_args(kind)):
            if typing.is_typeddict(part):
                meanings |= _meanings(part, names, f"{prefix}{name}.")
    return meanings


def documentation() -> str:
    """The keys as a Markdown table."""
    rows = [f"| `{key}` | {meaning} |" for key, meaning in keys().items()]
    return "\n".join(["| key | meaning |", "|---|---|", *rows])
