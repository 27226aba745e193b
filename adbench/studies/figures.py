"""`python -m adbench.figures KIND RUN [RUN ...] --out FILE`: finished runs side by side, as the papers' figures show
methods. Nothing is trained.

| kind | what | source |
|---|---|---|
| codes | density of normal images' codes, a plot for each run | P-WAE, Figure 7 |
| reconstructions | image, and of each run reconstruction and difference | CBiGAN, Figure 5 |
| moments | mean and deviation of each pixel of a window over training images, a plot for each run | SSAE, Figure 8 |
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adbench.errors import command
from adbench.types import UserError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
FEWEST = 4  # points that have a density
KINDS = {
    "codes": "P-WAE's Figure 7", "reconstructions": "CBiGAN's Figure 5", "moments": "SSAE's Figure 8",
}  # fmt: skip


class Finished(NamedTuple):
    """A finished run: its folder and what metrics.json and config.yaml hold."""

    path: Path
    record: Mapping[str, Any]
    config: Any

    @property
    def data(self) -> str:
        """The id of its data."""
        return str(self.config.data.id)


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.figures", description="Finished runs side by side in one picture; never trains.",
        epilog="Example: python -m adbench.figures reconstructions RUN RUN --out figure5.png --per-defect 1",
    )  # fmt: skip
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"where to: {', '.join(SUFFIXES)}")
    chosen = parser.add_mutually_exclusive_group()
    by_place = "so many test images, evenly spread by their rows, whatever they show (default: 6)"
    by_kind = "so many of each defect kind and of the normal images, evenly spread by their rows"
    chosen.add_argument("--number", type=int, metavar="N", help=f"reconstructions: {by_place}")
    chosen.add_argument("--per-defect", type=int, metavar="N", help=f"reconstructions: {by_kind}")
    chosen.add_argument("--rows", metavar="R,R,...", help="reconstructions: these rows of split.json")
    options = parser.parse_args(arguments)
    try:
        figure = draw(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from adbench.files import whole

    with whole(options.out) as temporary:
        figure.savefig(temporary, format=options.out.suffix[1:].lower())
    print(options.out)
    return 0


def draw(options: argparse.Namespace) -> Figure:
    """The picture that a command line asks for.

    Raises:
        UserError: an argument does not fit, or the runs cannot stand beside each other.
    """
    choice = [name for name in ("number", "per_defect", "rows") if getattr(options, name) is not None]
    if choice and options.kind != "reconstructions":
        raise UserError(
            f"--{choice[0].replace('_', '-')} chooses images of reconstructions; leave it out of {options.kind}"
        )
    for name in ("number", "per_defect"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.out.suffix.lower() not in SUFFIXES or options.out.is_dir():
        raise UserError(f"--out takes a file that ends in {', '.join(SUFFIXES)}, got {options.out}")
    runs = [finished(path) for path in options.runs]
    twice = sorted({str(run.path) for run in runs if [one.path for one in runs].count(run.path) > 1})
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    if options.kind == "moments":
        return moments(runs)
    refuse_different_data(runs)
    if options.kind == "codes":
        return codes(runs)
    return reconstructions(runs, options.number, options.per_defect, options.rows)


# -- runs -------------------------------------------------------------------------------------------------------------


def finished(path: Path) -> Finished:
    """A run that is finished.

    Raises:
        UserError: it is not, or the folder is none of a run.
    """
    from adbench.experiment.folder import RunFolder

    folder = RunFolder(path)
    config = folder.config()
    record = folder.metrics()
    if not record:
        raise UserError(f"{folder.path / 'metrics.json'} cannot be read; the run's own command writes it again")
    if record.get("status") != "finished":
        raise UserError(f"{path} is not finished (status {record.get('status')}); the run's own command continues it")
    return Finished(folder.path.resolve(), record, config)


def refuse_different_data(runs: Sequence[Finished]) -> None:
    """Columns show the same images, so the runs' data must be the same: by fingerprint, where the runs tell it.

    Raises:
        UserError: naming two runs.
    """
    first = runs[0]
    for run in runs[1:]:
        marks = [one.record.get("data_fingerprint") for one in (first, run)]
        if run.data != first.data or (None not in marks and marks[0] != marks[1]):
            other = f"{run.data}" if run.data != first.data else f"{run.data} with other images"
            raise UserError(
                f"{first.path} was trained on {first.data} and {run.path} on {other}; "
                "give runs on the same data, one figure for each set"
            )


def names(runs: Sequence[Finished]) -> list[str]:
    """What tells the runs apart: the method, then its changed values, then pretraining, protocol and seed."""
    levels = [
        [str(run.record["method"]) for run in runs],
        [
            ", ".join(
                f"{key.removeprefix('method.')}={value}" for key, value in (run.record.get("changed") or {}).items()
            )
            for run in runs
        ],
        [str(run.record["pretraining"]) for run in runs],
        [str(run.config.protocol.id) for run in runs],
        [f"seed {run.record['seed']}" for run in runs],
    ]
    texts = levels[0]
    for level in levels[1:]:
        if len(set(texts)) == len(runs):
            break
        if len(set(level)) > 1:
            texts = [f"{name} {more}".strip() for name, more in zip(texts, level, strict=True)]
    return texts if len(set(texts)) == len(runs) else [str(run.path) for run in runs]


def _datamodule(run: Finished, supervision: str) -> Any:
    from adbench.experiment.build import stored_datamodule

    datamodule = stored_datamodule(run.config, supervision, run.path)
    datamodule.setup()
    return datamodule


# -- codes ------------------------------------------------------------------------------------------------------------


def codes(runs: Sequence[Finished]) -> Figure:
    """Densities of the codes of the normal test images that every run has kept codes of.

    Raises:
        UserError: a run has no codes or codes that are not finite, or too few of the images are shared.
    """
    import numpy as np

    from adbench.evaluation.codes import draw_density, load_codes

    kept = []
    for run in runs:
        file = run.path / "figures" / "codes.npz"
        if not file.exists():
            raise UserError(f"{run.path} has no codes: {run.record['method']} has none, or an older version tested it")
        kept.append(load_codes(file))
        if not np.isfinite(kept[-1].codes).all():
            raise UserError(f"the codes of {run.path} are not finite: it has diverged; leave it out")
    shared = sorted(set.intersection(*({*one.rows[one.kinds == "good"].tolist()} for one in kept)))
    if len(shared) < FEWEST:
        raise UserError(
            f"a density needs {FEWEST} normal test images that all runs have codes of, and these share {len(shared)}"
        )
    places = [[one.rows.tolist().index(row) for row in shared] for one in kept]
    return draw_density({name: one.codes[at] for name, one, at in zip(names(runs), kept, places, strict=True)})


# -- reconstructions --------------------------------------------------------------------------------------------------


def rows_of_each_kind(defects: Any, rows: Any, number: int) -> list[int]:
    """Of each defect kind, and last of the normal rows, so many that are evenly spread over the sorted rows.

    Args:
        defects: (N,) kind of each row of the record table, "good" of normal ones.
        rows: (n,) of it.
        number: of each kind.
    """
    import numpy as np

    from adbench.evaluation.panels import spread

    rows = np.sort(rows)
    kinds = defects[rows]
    in_order = sorted(set(kinds.tolist()), key=lambda kind: (kind == "good", kind))
    return [row for kind in in_order for row in spread(rows[kinds == kind], number)]


def reconstructions(
    runs: Sequence[Finished], number: int | None = None, per_defect: int | None = None, rows: str | None = None
) -> Figure:
    """A row for each test image: the image, and of each run its reconstruction and the absolute difference.

    Args:
        runs: on the same data.
        number: so many test images, evenly spread by their rows; 6 if nothing else is asked for.
        per_defect: in place of it so many of each defect kind and of the normal images.
        rows: in place of both, row numbers with commas between them.

    Raises:
        UserError: a run's method reconstructs no images, or a row is not tested by all runs.
    """
    import numpy as np
    import torch

    from adbench.evaluation.panels import spread
    from adbench.experiment.build import load_method

    methods = [load_method(run.path) for run in runs]
    datamodules = [_datamodule(run, method.supervision) for run, method in zip(runs, methods, strict=True)]
    records = datamodules[0].records
    tested = np.array(sorted(set.intersection(*({*one.split.test.tolist()} for one in datamodules))), dtype=np.int64)
    if rows is not None:
        chosen = _given_rows(rows, tested.tolist())
    elif per_defect is not None:
        chosen = rows_of_each_kind(records.defect, tested, per_defect)
    else:
        chosen = spread(tested, number or 6)
    columns = []
    for run, method, datamodule in zip(runs, methods, datamodules, strict=True):
        image, mask = _test_images(datamodule, chosen)
        with torch.no_grad():
            x_hat = method.reconstruct(image) if image.ndim == 4 else None
        if x_hat is None:
            raise UserError(f"{run.path}: {run.record['method']} reconstructs no images; leave this run out")
        columns.append((image, x_hat, mask if datamodule.has_masks else None))
    return draw_reconstructions(names(runs), [str(kind) for kind in records.defect[chosen]], columns)


def _given_rows(text: str, tested: list[int]) -> list[int]:
    """`3,17` -> [3, 17], if every run tests them."""
    try:
        rows = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--rows takes row numbers with commas between them, as in --rows 3,17; got {text!r}") from None
    absent = [row for row in rows if row not in set(tested)]
    if absent:
        some = ", ".join(map(str, tested[:5])) + (f", ... {tested[-1]}" if len(tested) > 5 else "")
        raise UserError(f"row {absent[0]} is not a test row of all these runs; they are {some} (split.json lists them)")
    return list(dict.fromkeys(rows))


def _test_images(datamodule: Any, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, C, H, W) or features (n, D), and masks (n, 1, H, W), of test rows in their order."""
    import torch

    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for batch in datamodule.test_dataloader():
        here = [at for at, row in enumerate(batch.index.tolist()) if row in set(rows)]
        if here:
            picked = datamodule.on_after_batch_transfer(type(batch)(*(part[here] for part in batch)))
            found |= dict(zip(picked.index.tolist(), zip(picked.image, picked.mask, strict=True), strict=True))
        if len(found) == len(set(rows)):
            break
    return torch.stack([found[row][0] for row in rows]), torch.stack([found[row][1] for row in rows])


def draw_reconstructions(
    titles: Sequence[str], kinds: Sequence[str], columns: Sequence[tuple[Any, Any, Any]]
) -> Figure:
    """Figure 5 of CBiGAN.

    Args:
        titles: of the runs.
        kinds: defect kind of each image.
        columns: of each run (images, reconstructions) in [0, 1], both (n, 3, H, W) of a size that is the run's own, and
            masks (n, 1, H, W) or None. The first run's images and masks are shown.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from adbench.evaluation.overlay import COLOURS, map_scale
    from adbench.evaluation.panels import ANOMALOUS, CONTOUR, DPI, INK, NORMAL

    images, _, masks = columns[0]
    differences = [(image - x_hat).abs().mean(1).numpy() for image, x_hat, _ in columns]
    scale = map_scale([one for difference in differences for one in difference])
    height, width = images.shape[-2:]
    figure = Figure(
        figsize=((1 + 2 * len(columns)) * 1.35 + 0.9, len(kinds) * 1.35 * height / width + 0.5),
        dpi=DPI, facecolor="white", layout="constrained",
    )  # fmt: skip
    grid = figure.subplots(len(kinds), 1 + 2 * len(columns), squeeze=False)
    for at, (row, kind) in enumerate(zip(grid, kinds, strict=True)):
        row[0].imshow(images[at].movedim(0, -1).numpy())
        if masks is not None and masks[at].any():
            row[0].contour(masks[at, 0].numpy(), levels=[0.5], colors=CONTOUR, linewidths=1.0)
        colour = NORMAL if kind == "good" else ANOMALOUS
        row[0].set_ylabel(kind.replace("_", " "), fontsize=8, color=colour)
        for k, ((_, x_hat, _), difference) in enumerate(zip(columns, differences, strict=True)):
            row[1 + 2 * k].imshow(x_hat[at].clamp(0, 1).movedim(0, -1).numpy())
            row[2 + 2 * k].imshow(difference[at], cmap=COLOURS, norm=scale)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    grid[0, 0].set_title("image", fontsize=8, color=INK, loc="left")
    for k, title in enumerate(titles):
        grid[0, 1 + 2 * k].set_title(f"{title}\nreconstruction", fontsize=8, color=INK, loc="left")
        grid[0, 2 + 2 * k].set_title("difference", fontsize=8, color=INK, loc="left")
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=grid, shrink=0.6, aspect=30, pad=0.01, extend="max")
    bar.set_label("|image - reconstruction|, mean of channels", fontsize=7, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)
    return figure


# -- moments ----------------------------------------------------------------------------------------------------------


def moments(runs: Sequence[Finished]) -> Figure:
    """A plot for each run: moments of the pixels of a window of half the image's side, over its training images.

    Raises:
        UserError: a run was trained on a table.
    """
    from matplotlib.figure import Figure

    from adbench.evaluation.panels import DPI, FAINT, INK
    from adbench.evaluation.pixel_statistics import pixel_moments

    figure = Figure(figsize=(3.1 * len(runs) + 0.3, 2.8), dpi=DPI, facecolor="white", layout="constrained")
    plots = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, run in zip(plots, runs, strict=True):
        if run.config.data.kind == "tabular":
            raise UserError(f"{run.path} was trained on a table; moments of pixels are of images")
        datamodule = _datamodule(run, "unsupervised")
        side = min(datamodule.size)
        mean, std = pixel_moments((batch.image for batch in datamodule.training_batches("cpu")), side // 2)
        line = run.config.data.kind != "texture"  # the paper draws every pixel of textures, of objects a line
        for values, name in ((mean, "mean"), (std, "standard deviation")):
            drawn = values[len(values) // 2] if line else values.flatten()
            axes.plot(drawn.numpy(), linewidth=0.8, label=name)
        axes.set_title(f"{run.data}, {side} px", fontsize=9, color=INK, loc="left")
        axes.set_xlabel("pixel of the middle line" if line else "pixel, flattened", fontsize=8, color=INK)
        axes.set(ylim=(0, 1))
        axes.tick_params(labelsize=7, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
    plots[0].set_ylabel("pixel value", fontsize=8, color=INK)
    plots[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


if __name__ == "__main__":
    sys.exit(main())
