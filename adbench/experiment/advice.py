"""Which method is for what, in a line each: for `--help` and for the first line of a run."""

from __future__ import annotations

AT_ONCE = "one pass over the images, no training"
MINUTES = "training; minutes on two cores with the preset NAME/small, far longer as published"
SMALL = "training; minutes on two cores with budget=quick, the default, longer with budget=paper"
ADAPTED = "a detector of another library; see docs/adapters.md"

# The first part of a method's name -> what it is for, and what it costs.
PURPOSES: dict[str, tuple[str, str]] = {
    "patchcore": ("objects and textures, with ImageNet weights", AT_ONCE),
    "padim": ("objects that lie alike in every image, with ImageNet weights", AT_ONCE),
    "knn": ("images that look wrong as a whole, with ImageNet weights; draws no map", AT_ONCE),
    "ssae": ("textures and objects, without any weights", MINUTES),
    "pwae": ("textures and objects, whole and by patches", MINUTES),
    "igd": ("textures, objects and small images, whole and by patches", MINUTES),
    "cbigan": ("textures and objects, without any weights", MINUTES),
    "egbad": ("textures and objects, CBiGAN's predecessor", MINUTES),
    "esad": ("a few known defects (protocol=semi_supervised); tables, small images", MINUTES),
    "deep_sad": ("a few known defects (protocol=semi_supervised); tables, small images", SMALL),
    "deep_svdd": ("small images and tables, a baseline", SMALL),
    "autoencoder": ("textures and objects, a baseline", SMALL),
    "vae": ("textures and objects, a baseline", SMALL),
    "isolation_forest": ("tables, a baseline", AT_ONCE),
    "ocsvm": ("tables, a baseline", AT_ONCE),
    "kde": ("tables, a baseline", AT_ONCE),
    "nearest_neighbour": ("tables, and images as they are, a baseline", AT_ONCE),
    "pca": ("a check of any data set: how far does a linear fit come?", AT_ONCE),
    "anomalib/NAME": ("objects and textures, most with ImageNet weights", ADAPTED),
    "pyod/NAME": ("tables, and images by a backbone's features", ADAPTED),
    "brightness": ("a check of any images: does the mean brightness tell them apart?", AT_ONCE),
}


def purpose(method: str) -> str | None:
    """What a method of this package is for and what it costs; None for another's."""
    first = method.split("/")[0]
    found = PURPOSES.get(first) or PURPOSES.get(f"{first}/NAME")
    return None if found is None else "; ".join(found)


def table() -> list[str]:
    """A line for each purpose, with the methods that serve it, below a line for each cost."""
    by_cost: dict[str, dict[str, list[str]]] = {}
    for name, (what, cost) in PURPOSES.items():
        by_cost.setdefault(cost, {}).setdefault(what, []).append(name)
    width = max(len(", ".join(names)) for purposes in by_cost.values() for names in purposes.values())
    lines = []
    for cost, purposes in by_cost.items():
        lines.append(f"  {cost}:")
        lines += [f"    {', '.join(names):<{width}}  {what}" for what, names in purposes.items()]
    return lines
