"""Every run of a paper's table, as conf/experiment composes it, answers a row of that table and nothing marks it."""

import re

import pytest
from compositions import changed_values_of, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from adbench.experiment.groups import choices
from adbench.report import published
from adbench.report.collect import variant_of

PAPERS = {"cbigan": "CBiGAN", "igd": "IGD", "pwae": "P-WAE", "ssae": "SSAE", "esad": "ESAD"}
TABLES = [name for name in choices("experiment") if re.fullmatch(r"\w+/table\w+", name)]
FEW = ("seed", "data.normal_class", "cell")  # what makes rows many and not different
ROMAN = {"1": "I", "2": "II", "3": "III"}


def table_of(name):
    paper, number = PAPERS[name.split("/")[0]], re.match(r"table(\w?\d+)", name.split("/")[1]).group(1)
    return paper, number if (paper, number) in published.tables() else ROMAN[number]


def jobs(name):
    """A few command lines of a sweep: each method and setting once, the first and the last of data sets and classes."""
    params = composed(f"experiment={name}", hydra=True).hydra.sweeper.params
    swept = {}
    for key, text in (params or {}).items():
        override = OverridesParser.create().parse_override(f"{key}={text}")
        values = (
            list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.get_value_string()]
        )
        if key in FEW:
            values = values[:: max(1, len(values) - 1)]
        elif key == "data":
            values = [v for v in values if v in (values[0], values[-1], "mvtec/capsule")]
        swept[key] = values
    for k in range(max(map(len, swept.values()), default=1)):
        yield [f"experiment={name}", *(f"{key}={values[k % len(values)]}" for key, values in swept.items())]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_answers_one_of_its_rows(name):
    paper, table = table_of(name)
    rows = published.tables()[paper, table]
    for line in jobs(name):
        cfg = composed(*line, hydra=True)
        chosen = dict(cfg.hydra.runtime.choices)
        record = {group: chosen[group] for group in ("method", "data", "protocol", "pretraining")}
        record |= {"changed": changed_values_of(*line), "budget": {"name": cfg.budget.name}}
        groups = ("method", "data", "protocol", "pretraining", "budget")
        config = {group: OmegaConf.to_container(cfg[group], resolve=True) for group in groups}
        variant = variant_of(record, config, cfg.data.id)
        matched = published.match(variant, paper, table, {row.method for row in rows})
        beside = any(
            row.method in matched
            and published._protocol_fits(variant, row)
            and any(
                t.format(m) == cfg.data.id for t, _ in published._templates(row) for _, m in published.members(row)[1]
            )
            for row in rows
        )
        place = (paper, table, cfg.data.id.split("/")[0], variant.pretraining)
        if "small" in name or variant.method in UNPRINTED or place in UNPRINTED_PRETRAINING:
            continue
        assert beside, f"{line}: {variant} answers no row of {paper} {table}"
        for found in matched.values():
            marks = published.marks_of(variant, found.kind, found.spec, "image_auroc", paper)
            told = ("baseline", "own training rows")  # the last until pretraining.images=DIR is given
            unexpected = [mark for mark in marks if not any(word in mark for word in told)]
            assert variant.budget != "paper" or found.kind != "paper" or unexpected == [], (line, marks)


# Baselines of ours that stand beside a table without a row in it.
UNPRINTED = {"ocsvm", "isolation_forest", "kde", "nearest_neighbour", "esad/clipped"}
# IGD's Table 1 has no row for MNIST after self-supervised pretraining.
UNPRINTED_PRETRAINING = {("IGD", "1", "mnist", "simclr")}
