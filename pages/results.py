"""Tables of figures: ours from docs/results/runs.csv, the papers' from adbench/report/published.csv, and nothing else.

A row of runs.csv with `source` run is one run, as `adbench.report` describes it. A row with `source` recorded was
written down before this file was: the mean and the sample standard deviation (`..._std`) of as many `runs` as it names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from adbench.report.collect import mapping
from adbench.report.published import Row, members, rows
from pages import DOCS

RUNS = DOCS / "results" / "runs.csv"
KEY = ("series", "method", "data", "protocol", "pretraining", "changed")  # what the seeds of one figure share
MIXED = "method.labelled_stream=false"
TEXTURES = ("textures/brick", "textures/grass", "textures/gravel")
ODDS = ("arrhythmia", "cardio", "satellite", "satimage-2", "shuttle", "thyroid")
METRICS = ("image_auroc", "pixel_auroc", "pixel_pro")
NONE = "–"

#: First part of a method's name -> paper, table of image AUROCs and the name that it prints.
PRINTED = {
    "cbigan": ("CBiGAN", "III", "CBiGAN (ours)"), "egbad": ("CBiGAN", "III", "EGBAD"),
    "igd": ("IGD", "S1", "Ours - ImageNet"), "pwae": ("P-WAE", "II", "P-WAE (Ours)"), "ssae": ("SSAE", "3", "Ours"),
    "patchcore": ("SSAE", "3", "PatchCore"),
}  # fmt: skip


def rounded(number: float, digits: int = 3) -> str:
    """A number as a table shows it, halves up as people expect of means of printed figures."""
    return f"{number + 1e-9:.{digits}f}"


class Value(NamedTuple):
    """A figure: mean and sample standard deviation over n runs, as fractions."""

    mean: float
    std: float | None
    n: int

    def text(self, digits: int = 3, scale: float = 1.0) -> str:
        words = rounded(self.mean * scale, digits)
        return words if self.std is None else f"{words} ± {rounded(self.std * scale, digits)}"


Line = dict[str, str]


@cache
def lines() -> tuple[Line, ...]:
    """The rows of runs.csv."""
    with RUNS.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def group(series: str, method: str, data: str, **where: str) -> list[Line]:
    """The rows of one figure: those that are alike in everything but the seed."""
    wanted = {"series": series, "method": method, "data": data, **where}
    return [line for line in lines() if all(line[key] == value for key, value in wanted.items())]


def value(found: Sequence[Line], metric: str = "image_auroc") -> Value | None:
    """Mean and deviation of some rows; None where they lack the metric.

    Raises:
        ValueError: the rows are not seeds of one figure.
    """
    found = [line for line in found if line[metric]]
    if not found:
        return None
    if len({tuple(line[key] for key in KEY) for line in found}) > 1:
        raise ValueError(f"rows of several figures: {[[line[key] for key in KEY] for line in found]}")
    if len(found) == 1:
        line = found[0]
        std = line.get(f"{metric}_std")
        return Value(float(line[metric]), float(std) if std else None, int(line["runs"] or 1))
    numbers = np.array([float(line[metric]) for line in found])
    return Value(float(numbers.mean()), float(numbers.std(ddof=1)), len(numbers))


def cell(found: Sequence[Line], metric: str = "image_auroc", digits: int = 3, scale: float = 1.0) -> str:
    one = value(found, metric)
    return NONE if one is None else one.text(digits, scale)


def published(method: str, data: str) -> Row | None:
    """The image AUROC that a paper prints for a method on a data set."""
    paper, table, printed = PRINTED.get(method.split("/")[0], ("", "", ""))
    for row in rows():
        if (row.paper, row.table, row.method) == (paper, table, printed):
            how, ((template, member), *_) = members(row)
            if how == "one" and template.format(member) == data and mapping()["metrics"][row.metric] == "image_auroc":
                return row
    return None


def printed(method: str, data: str) -> str:
    row = published(method, data)
    if row is None:
        return NONE
    words = row.value if row.unit == "fraction" else f"{row.number:.3f}"
    return words + (" \\*" if row.breaks else "")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (head, *body))
    return "\n".join([first, "|" + "---|" * len(head), *others])


def batches(found: Sequence[Line]) -> str:
    first = found[0]
    return f"{int(first['batches']):,} of {first['batch_size']}" if first["batches"] not in ("", "0") else NONE


# -- docs/start.md ----------------------------------------------------------------------------------------------------


def first_run() -> str:
    """What `make run` trains."""
    found = [line for line in lines() if line["series"] == "first_run"]
    body = [
        [one["threads"], f"`{one['precision']}`", seconds([one], "total_s"), *(cell([one], m) for m in METRICS[:2])]
        for one in found
    ]
    return table(["cores", "`trainer.precision`", "whole run", "image AUROC", "pixel AUROC"], body)


# -- docs/results/measured.md -----------------------------------------------------------------------------------------


def _places(series: str) -> list[tuple[str, str]]:
    """Data set and method of each figure of a series, data set by data set."""
    places = list(dict.fromkeys((line["data"], line["method"]) for line in lines() if line["series"] == series))
    order = list(dict.fromkeys(data for data, _ in places))
    return sorted(places, key=lambda place: order.index(place[0]))


def _name(found: Sequence[Line]) -> str:
    """A method's name, with what was changed where that is not its file's."""
    changed = [part.removeprefix("method.") for part in found[0]["changed"].replace('"', "").split(", ") if part]
    return ", ".join(f"`{word}`" for word in [found[0]["method"], *changed])


def objects_and_textures() -> str:
    """The presets for CPUs on objects and textures."""
    body = []
    for data, method in _places("objects_and_textures"):
        found = group("objects_and_textures", method, data)
        image, pixel, pro = (cell(found, metric) for metric in METRICS)
        body.append([f"`{data}`", _name(found), batches(found), image, printed(method, data), pixel, pro])
    return table(["data", "method", "batches", "image AUROC", "paper", "pixel AUROC", "PRO"], body)


def class_sets() -> str:
    """Digits, MNIST and a folder, with the interval over test images."""
    body = []
    for data, method in _places("class_sets"):
        found = group("class_sets", method, data)
        (line,) = found
        interval = f" [{float(line['image_auroc_low']):.2f}, {float(line['image_auroc_high']):.2f}]"
        name, _, number = data.partition("/")
        shown = f"`{name} ({number} normal)`" if number else f"`{name}`"
        body.append(
            [shown, f"`{method}`", batches(found), cell(found) + interval, *(cell(found, m) for m in METRICS[1:])]
        )
    return table(["data", "method", "batches", "image AUROC [95 %]", "pixel AUROC", "PRO"], body)


def seconds(found: Sequence[Line], key: str, digits: int = 0) -> str:
    values = [float(line[key]) for line in found if line[key]]
    return f"{np.mean(values):.{digits}f} s" if values else NONE


def reference() -> str:
    """The reference detectors, with the seconds that they take."""
    body = []
    for data, method in _places("reference"):
        found = group("reference", method, data)
        figures = [cell(found, metric) for metric in METRICS]
        body.append([f"`{data}`", f"`{method}`", *figures, seconds(found, "total_s"), seconds(found, "test_s")])
    return table(["data", "method", "image AUROC", "pixel AUROC", "PRO", "whole run", "its test"], body)


def imagenet_weights() -> str:
    """IGD and P-WAE with and without ImageNet weights."""
    body = []
    for line in lines():
        if line["series"] == "imagenet_weights":
            figures = [cell([line], metric) for metric in METRICS]
            times = [seconds([line], key) for key in ("pretraining_s", "train_s")]
            body.append([f"`{line['data']}`", f"`{line['method']}`", f"`{line['pretraining']}`", *figures, *times])
    head = ["data", "method", "`pretraining`", "image AUROC", "pixel AUROC", "PRO", "pretraining", "training"]
    return table(head, body)


def _levels(protocol: str, title: str) -> str:
    found = [
        line for line in lines() if line["series"] == "fewer_and_polluted" and line["protocol"].startswith(protocol)
    ]
    levels = list(dict.fromkeys(line["protocol"] for line in found))
    methods = list(dict.fromkeys(line["method"] for line in found))
    body = [
        [f"`{m}`", *(cell([line for line in found if (line["method"], line["protocol"]) == (m, p)]) for p in levels)]
        for m in methods
    ]
    return table([title, *(p.partition("=")[2] for p in levels)], body)


def contaminated() -> str:
    """Polluted training rows."""
    return _levels("contaminated", "contamination ratio")


def small_train() -> str:
    """Fewer training rows."""
    return _levels("small_train", "share of training rows")


#: Data set of the comparison -> its table's protocols as runs.csv names them, with what stands above the column.
ROBUSTNESS = ("mvtec/bottle", "mvtec/pill", "mtd", "odds/cardio")
SETTINGS = {
    "one_class": "all rows", "contaminated ratio=0.05": "5 % polluted", "contaminated ratio=0.1": "10 % polluted",
    "small_train fraction=0.1": "a tenth of the rows",
    "semi_supervised labelled_ratio=0.05 labelled_classes=all": "known anomalies",
}  # fmt: skip


def robustness(data: str) -> str:
    """Detectors under five settings of one data set."""
    found = [line for line in lines() if line["series"] == "robustness" and line["data"] == data]
    body = []
    for method in sorted({line["method"] for line in found}):
        rows = [line for line in found if line["method"] == method]
        figures = [cell([line for line in rows if line["protocol"] == protocol]) for protocol in SETTINGS]
        times = [float(line["total_s"]) for line in rows if line["total_s"]]
        body.append([f"`{method}`", *figures, f"{np.median(times):.0f} s"])
    return table([f"`{data}`", *SETTINGS.values(), "a run"], body)


# -- pages of methods -------------------------------------------------------------------------------------------------


def cbigan() -> str:
    """CBiGAN and EGBAD on one object."""
    body = []
    for method in ("cbigan/small", "egbad/small"):
        found = group("objects_and_textures", method, "mvtec/bottle")
        body.append(["`mvtec/bottle`", f"`{method}`", batches(found), cell(found), printed(method, "mvtec/bottle")])
    return table(["data", "method", "batches", "image AUROC", "paper"], body)


def reference_bottle() -> str:
    """The reference detectors on one object."""
    body = []
    for method in ("patchcore/small", "padim/small", "knn/small"):
        found = group("reference", method, "mvtec/bottle")
        body.append([f"`{method}`", *(cell(found, metric) for metric in METRICS)])
    return table(["method", "image AUROC", "pixel AUROC", "PRO"], body)


def _esad(method: str, dataset: str, changed: str = "") -> str:
    found = group("esad_table3", method, f"odds/{dataset}", changed=changed)
    one = value(found)
    if one is None:
        return NONE
    return one.text(1, 100) + (f" ({one.n} seeds)" if one.n < 10 else "")


def esad_mean(method: str, changed: str = "") -> str:
    """Mean over the six tables in %, where all six were run."""
    found = [value(group("esad_table3", method, f"odds/{name}", changed=changed)) for name in ODDS]
    return NONE if None in found else rounded(100 * float(np.mean([one.mean for one in found if one])), 1)


def _printed_row(printed_method: str) -> dict[str, Row]:
    return {r.dataset: r for r in rows() if (r.paper, r.table, r.method) == ("ESAD", "3", printed_method)}


def esad_printed_mean(printed_method: str) -> str:
    return rounded(100 * float(np.mean([_printed_row(printed_method)[name].number for name in ODDS])), 1)


def esad_table3() -> str:
    """ESAD's Table 3, ours and the paper's."""
    body = []
    for method, changed, paper in (
        ("esad", "", ""), ("esad", MIXED, "ESAD (ours)"), ("esad/clipped", MIXED, ""), ("deep_sad", "", "Deep SAD"),
        ("deep_svdd", "", "Deep SVDD"), ("ocsvm", "", ""), ("isolation_forest", "", ""), ("kde", "", ""),
        ("nearest_neighbour", "", ""),
    ):  # fmt: skip
        name = f"`{method}`" + (", labels mixed in" if changed else "")
        body.append([name, *(_esad(method, d, changed) for d in ODDS), esad_mean(method, changed)])
        if paper:
            theirs = [_printed_row(paper)[name] for name in ODDS]
            words = paper.removesuffix(" (ours)")
            body.append([f"*{words}, paper*", *(f"{r.value} ± {r.std}" for r in theirs), esad_printed_mean(paper)])
    return table(["method", *ODDS, "mean"], body)


READINGS = ("image_auroc", "ablation/unsquared_image_auroc", "ablation/means_image_auroc")


def _triple(found: Sequence[Line]) -> str:
    return " / ".join(cell(found, metric, 1, 100) for metric in READINGS)


def esad_readings() -> str:
    """What ESAD's paper leaves open, in readings side by side."""
    notes = {"esad": " (min-max, means)", "esad/summed": " (min-max, sums)"}
    data = {"arrhythmia": "10 seeds", "satellite": "seeds 0, 1, 2, 4", "cardio": "seeds 0 to 2"}
    methods = list(dict.fromkeys(line["method"] for line in lines() if line["series"] == "esad_readings"))
    body = [
        [f"`{m}`{notes.get(m, '')}", *(_triple(group("esad_readings", m, f"odds/{d}")) for d in data)] for m in methods
    ]
    theirs = _printed_row("ESAD (ours)")
    body.append(["*ESAD, paper, 10 seeds*", *(f"{theirs[d].value} ± {theirs[d].std}" for d in data)])
    return table(["reading", *(f"{name}, {seeds}" for name, seeds in data.items())], body)


def esad_labels() -> str:
    """Labelled rows in every step against labels mixed in."""
    methods = list(dict.fromkeys(line["method"] for line in lines() if line["series"] == "esad_labels"))
    body = [
        [f"`{m}`", *(_triple(group("esad_labels", m, "odds/satellite", changed=c)) for c in ("", MIXED))]
        for m in methods
    ]
    return table(["satellite, seeds 0 to 2", "labelled rows in every step", "labels mixed in"], body)


def esad_pairs() -> str:
    """Known anomalies on pairs of MNIST's classes."""
    shares, pairs = ("0", "0.01", "0.05"), ((0, 1), (3, 8), (4, 9))

    def one(normal: int, known: int, share: str) -> Value | None:
        protocol = f"semi_supervised labelled_ratio={share} labelled_classes={known}"
        return value(group("esad_pairs", "esad/mnist_small", f"mnist/{normal}", protocol=protocol))

    values = {(pair, share): one(*pair, share) for pair in pairs for share in shares}
    body = [[f"{a}, {b}", *(v.text() if (v := values[(a, b), s]) else NONE for s in shares)] for a, b in pairs]
    means = [np.mean([v.mean for (_, s), v in values.items() if s == share and v]) for share in shares]
    body.append(["mean", *(rounded(float(mean)) for mean in means)])
    settings = ("gamma_l=.00; gamma_p=0; k_l=0", "gamma_l=.01; gamma_p=0; k_l=1", "gamma_l=.05; gamma_p=0; k_l=1")
    theirs = {
        r.setting: r for r in rows() if (r.paper, r.table, r.dataset, r.method) == ("ESAD", "1", "MNIST", "ESAD (ours)")
    }
    body.append(["*ESAD, paper: 90 pairs, 200 epochs*", *(f"{theirs[s].number:.3f}" for s in settings)])
    return table(["normal class, known class", "no labels", "1 %", "5 %"], body)


def _igd(data: str, classes: Sequence[int]) -> str:
    body = []
    for pretraining in ("none", "autoencoder"):
        for method in ("igd/small", "igd/small_rec"):
            values = [value(group("igd_rec", method, f"{data}/{k}", pretraining=pretraining)) for k in classes]
            known = [v for v in values if v]
            if known:
                name = f"`{method}`" + ("" if pretraining == "none" else f", `{pretraining}`")
                mean = rounded(float(np.mean([v.mean for v in known]))) if len(known) == len(classes) else NONE
                body.append([name, *(v.text() if v else NONE for v in values), mean])
    return table([data, *map(str, classes), "mean"], body)


def igd_digits() -> str:
    """IGD against its own reconstruction on digits."""
    return _igd("digits", range(10))


def igd_mnist() -> str:
    """IGD against its own reconstruction on MNIST."""
    return _igd("mnist", (0, 1, 8))


def _textures(series: str, means: bool, first: str) -> str:
    settings = list(dict.fromkeys((line["method"], line["changed"]) for line in lines() if line["series"] == series))
    body = []
    for method, changed in settings:
        found = [group(series, method, data, changed=changed) for data in TEXTURES]
        words = [part.removeprefix("method.") for part in changed.replace('"', "").split(", ") if part]
        hidden = ("jigsaw_input", "initialization")  # what the text above the table says of every row
        name = ", ".join(f"`{w}`" for w in [method, *(w for w in words if not w.startswith(hidden))])
        cells = [cell(one, metric) for one in found for metric in METRICS[:2]]
        if means:
            of = [[v.mean for one in found if (v := value(one, metric))] for metric in METRICS[:2]]
            cells += [rounded(float(np.mean(values))) for values in of]
        body.append([name, *cells])
    head = [f"{data.partition('/')[2]} {level}" for data in TEXTURES for level in ("image", "pixel")]
    return table([first, *head, *(["image", "pixel"] if means else [])], body)


def pwae_parts() -> str:
    """What each part of P-WAE brings."""
    return _textures("pwae_parts", means=False, first="variant")


def ssae_textures() -> str:
    """SSAE on three textures."""
    return _textures("ssae_textures", means=True, first="method")


# -- README -----------------------------------------------------------------------------------------------------------

YES, NO, UNKNOWN = "yes", "no", "unknown"


def _page(page: str, *methods: str) -> str:
    """A link to a method's page."""
    return "[" + ", ".join(f"`{method}`" for method in methods) + f"](docs/methods/{page}.md)"


def _bottle(method: str, series: str = "objects_and_textures") -> tuple[str, str]:
    """Our image AUROC on mvtec/bottle with its budget, and the paper's."""
    found = group(series, method, "mvtec/bottle")
    words = [cell(found), _name(found), batches(found).replace(" of ", " batches of ")]
    return ", ".join(word for word in words if word != NONE), printed(method, "mvtec/bottle")


def _several(methods: Sequence[str], series: str = "objects_and_textures") -> str:
    return ", ".join(cell(group(series, method, "mvtec/bottle")) for method in methods)


def readme_methods() -> str:
    """The methods, what is verified of each, one measured figure and the published one."""
    no_steps, tabular, small = "no training steps", "tables yes, images no", "with a smaller backbone, seed 0"
    lite0 = "ImageNet (EfficientNet-Lite0)"
    shallow = ("ocsvm", "isolation_forest", "kde", "nearest_neighbour")
    reached = "tables yes, images unknown"
    patchcore = _bottle("patchcore/small", "reference")[0]
    steps = batches(group("objects_and_textures", "vae", "mvtec/bottle")).replace(" of ", " batches of ")
    body = [
        [_page("cbigan", "cbigan"), "Carrara et al. 2020", "none", YES, NO, NO, UNKNOWN, *_bottle("cbigan/small")],
        [_page("cbigan", "egbad"), "the same, alpha = 0", "none", YES, NO, NO, UNKNOWN, *_bottle("egbad/small")],
        [_page("igd", "igd"), "Chen et al. 2022", "ImageNet, distilled (none)", YES, NO, NO, UNKNOWN,
         *_bottle("igd/small")],
        [_page("pwae", "pwae"), "Zhang et al.", "ImageNet (none)", YES, NO, NO, UNKNOWN, *_bottle("pwae/small")],
        [_page("ssae", "ssae"), "Bauer et al.", "none", YES, NO, NO, UNKNOWN, *_bottle("ssae/small")],
        [_page("esad", "esad"), "Huang et al. 2021", "none", YES, tabular, NO, "3 of 6 data sets",
         f"{esad_mean('esad', MIXED)} %, labels mixed in, 200 epochs", f"{esad_printed_mean('ESAD (ours)')} %"],
        [_page("baselines", "deep_sad"), "Ruff et al. 2020", "autoencoder (none)", YES, tabular, NO, reached,
         f"{esad_mean('deep_sad')} %", f"{esad_printed_mean('Deep SAD')} %, by ESAD's paper"],
        [_page("baselines", "deep_svdd"), "Ruff et al. 2018", "autoencoder (none)", YES, tabular, NO, reached,
         f"{esad_mean('deep_svdd')} %", f"{esad_printed_mean('Deep SVDD')} %, by ESAD's paper"],
        [_page("baselines", *shallow), "baselines", "none", YES, no_steps, NONE, NONE,
         ", ".join(map(esad_mean, shallow)) + " %", NONE],
        [_page("baselines", "pca", "brightness"), "trivial baselines", "none", NONE, no_steps, NONE, NONE,
         _several(("pca", "brightness")), NONE],
        [_page("baselines", "autoencoder", "vae"), "baselines", "none", YES, NO, NO, NONE,
         f"{_several(('autoencoder', 'vae'))}, {steps}", NONE],
        [_page("reference", "patchcore"), "Roth et al. 2022", lite0, YES, no_steps, NO, UNKNOWN,
         f"{patchcore} {small}", f"{printed('patchcore', 'mvtec/bottle')}, by SSAE's paper"],
        [_page("reference", "padim", "knn"), "Defard et al. 2021, Bergman et al. 2020", lite0, YES, no_steps, NO,
         UNKNOWN, _several(("padim/small", "knn/small"), "reference") + f", `/small` {small}", NONE],
    ]  # fmt: skip
    head = ["`method=`", "paper", "pretraining (in the figure)", "equations tested", "run at paper length",
            "run on a GPU", "published figure reached", "measured, with its budget", "published"]  # fmt: skip
    return table(head, body)
