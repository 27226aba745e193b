"""Artificial defects: each function turns clean images into (corrupted image, soft mask of what was changed).

Source: Bauer, Nakajima, Müller, "Self-Supervised Training with Autoencoders for Visual Anomaly Detection", Section 3.2,
Figure 5 and Section 4.3. The paper names the steps and no numbers; the numbers are arguments, set in YAML.

All rows of a batch are worked on together. A patch is described on a small lattice in its own coordinates (where every
patch has the same shape) and is rendered into a window of fixed size, so the cost does not depend on what was drawn.
Wherever the mask is 0 the corrupted image is the clean one, and both stay in [0, 1].

Shapes: image (B, 3, H, W) float in [0, 1] -> corrupted (B, 3, H, W), mask (B, 1, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adbench.types import UserError

LATTICE = 64  # nodes per side on which a patch's mask and displacements are drawn
PROBES = 12  # points per side at which a candidate deformation is judged
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass
class Draws:
    """Random numbers for the rows of a batch, in the order they are asked for.

    Args:
        generator: on the device of the images.
        rows: images on this device.
        rank, world: on several devices every one draws for the joined batch and keeps the rows rank, rank + world, ...
    """

    generator: torch.Generator
    rows: int
    rank: int = 0
    world: int = 1

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U(low, high) of shape (rows, *shape)."""
        return torch.empty(self._joined(shape), device=self.generator.device).uniform_(
            low, high, generator=self.generator
        )[self.rank :: self.world]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) of shape (rows, *shape)."""
        return torch.empty(self._joined(shape), device=self.generator.device).normal_(generator=self.generator)[
            self.rank :: self.world
        ]

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """int64, low..high inclusive, of shape (rows, *shape)."""
        return (low + self.uniform(*shape) * (high - low + 1)).long().clamp_(max=high)

    def _joined(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.rows * self.world, *shape)


Corruption = Callable[[Tensor, Draws], tuple[Tensor, Tensor]]


# -- boxes and windows --------------------------------------------------------------------------------------------


@dataclass
class Boxes:
    """Axis-aligned boxes in pixels, fully inside the image; each field int64 of one shape (B, ...)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def of(self, chosen: Tensor) -> Boxes:
        """From fields (B, T) the boxes `chosen` (B,) -> fields (B,)."""
        return Boxes(*(f.gather(1, chosen[:, None])[:, 0] for f in (self.top, self.left, self.height, self.width)))

    def smaller_side(self) -> Tensor:
        """int64 pixels, in the fields' shape."""
        return torch.minimum(self.height, self.width)


def _longest(side: int, share: float) -> int:
    return min(side, max(4, math.ceil(share * side)))


def _check_shares(name: str, shares: tuple[float, float]) -> None:
    if len(shares) != 2 or not 0 < shares[0] <= shares[1] <= 1:
        raise UserError(f"{name} must be two shares 0 < smallest <= largest <= 1, got {shares}")


def draw_boxes(draws: Draws, count: int, size: tuple[int, int], shares: tuple[float, float]) -> Boxes:
    """(B, count) boxes with sides U(shares) of the image's and a uniform position; no side is below 4 pixels."""
    u = draws.uniform(4, count)
    sides, offsets = [], []
    for axis, side in enumerate(size):
        extent = (shares[0] + u[:, axis] * (shares[1] - shares[0])).mul(side).round().long()
        extent = extent.clamp(min(4, side), _longest(side, shares[1]))
        sides.append(extent)
        offsets.append((u[:, 2 + axis] * (side - extent + 1)).long().clamp_(max=side).minimum(side - extent))
    return Boxes(offsets[0], offsets[1], sides[0], sides[1])


@dataclass
class Windows:
    """Windows of one size, one around each box, that lie inside the image.

    index: (N, P_h * P_w) positions in the flattened image; y, x: (N, P_h, 1) and (N, 1, P_w) float pixel coordinates
    relative to the box's top left corner.
    """

    index: Tensor
    y: Tensor
    x: Tensor
    shape: tuple[int, int]

    @classmethod
    def around(cls, boxes: Boxes, size: tuple[int, int], shape: tuple[int, int]) -> Windows:
        """Windows of one shape in images of one size, each (height, width), as central around the boxes as they fit.

        Args:
            boxes: fields (N,), no larger than a window.
            size: H and W.
            shape: P_h and P_w.
        """
        positions = []
        for offset, extent, side, window in zip(
            (boxes.top, boxes.left), (boxes.height, boxes.width), size, shape, strict=True
        ):
            start = (offset - (window - extent) // 2).clamp(0, side - window)
            positions.append(start[:, None] + torch.arange(window, device=offset.device))
        rows, cols = positions
        return cls(
            index=(rows[:, :, None] * size[1] + cols[:, None, :]).flatten(1),
            y=(rows - boxes.top[:, None]).float()[:, :, None],
            x=(cols - boxes.left[:, None]).float()[:, None, :],
            shape=shape,
        )

    def render(self, lattice: Tensor, boxes: Boxes) -> Tensor:
        """Lattice values (N, C, L, L), its corners on the box's corner pixels -> (N, C, P_h, P_w), bilinear."""
        u = 2 * self.x / (boxes.width[:, None, None] - 1).clamp(min=1) - 1
        v = 2 * self.y / (boxes.height[:, None, None] - 1).clamp(min=1) - 1
        grid = torch.stack(torch.broadcast_tensors(u, v), dim=-1)
        return F.grid_sample(lattice, grid, mode="bilinear", padding_mode="border", align_corners=True)

    def interior(self, boxes: Boxes) -> Tensor:
        """(N, P_h, P_w) bool: inside the box and not on its border pixels."""
        inside_y = (self.y > 0) & (self.y < boxes.height[:, None, None] - 1)
        inside_x = (self.x > 0) & (self.x < boxes.width[:, None, None] - 1)
        return inside_y & inside_x

    def cut(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, P_h, P_w)."""
        index = self.index[:, None].expand(-1, image.shape[1], -1)
        return image.flatten(2).gather(2, index).unflatten(2, self.shape)

    def paste(self, image: Tensor, content: Tensor) -> Tensor:
        """The image with (N, C, P_h, P_w) content in its window."""
        index = self.index[:, None].expand(-1, image.shape[1], -1)
        return image.flatten(2).scatter(2, index, content.flatten(2)).view_as(image)


def _sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values of (B, C, H, W) at pixel coordinates (B, ., .) -> (B, C, ., .)."""
    height, width = image.shape[-2:]
    grid = torch.stack(torch.broadcast_tensors(2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _reflect(coordinate: Tensor, last: Tensor) -> Tensor:
    """Fold coordinates into [0, last] by reflection at both ends."""
    last = last.to(coordinate.dtype).clamp(min=1)
    return last - (coordinate.remainder(2 * last) - last).abs()


# -- elastic deformation ------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _interpolation(fewest: int, most: int, nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bicubic weights from g control nodes to `nodes` points, for g = fewest..most.

    Returns:
        (most - fewest + 1, nodes, most) weights and (most - fewest + 1, most) indicator of the inner control nodes.
    """
    counts = range(fewest, most + 1)
    weights, inner = torch.zeros(len(counts), nodes, most), torch.zeros(len(counts), most)
    for row, g in enumerate(counts):
        impulses = torch.eye(g)[None, :, :, None]
        weights[row, :, :g] = F.interpolate(impulses, (nodes, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T
        inner[row, 1 : g - 1] = 1.0
    return weights.to(device), inner.to(device)


@lru_cache(maxsize=16)
def _axis(nodes: int, device: torch.device) -> Tensor:
    return torch.linspace(-1.0, 1.0, nodes, device=device)


def _bell(nodes: int, device: torch.device) -> Tensor:
    """(nodes, nodes) Gaussian bell centred in the patch, standard deviation a quarter of the patch's side."""
    profile = torch.exp(-0.5 * (_axis(nodes, device) / 0.5).square())
    return profile[:, None] * profile[None, :]


def _gaussian_matrix(sigma: Tensor, nodes: int) -> Tensor:
    """(B,) standard deviations in lattice steps -> (B, nodes, nodes) smoothing matrices whose rows sum to 1."""
    position = torch.arange(nodes, device=sigma.device, dtype=sigma.dtype)
    distance = (position[:, None] - position[None, :])[None] / sigma.clamp(min=1e-3)[:, None, None]
    return torch.softmax(-0.5 * distance.square(), dim=-1)


def shape_mask(noise: Tensor, aspect: Tensor, smooth: float = 0.15, feather: float = 0.03) -> Tensor:
    """A random soft shape on the lattice of a patch: low-pass noise under an elliptical window, cut at its median.

    The noise is counted from its lowest value, so that the window pulls the shape towards the middle of the patch and
    never draws its own outline. Half of the ellipse is inside by construction, which is 39 % of the patch before
    feathering, so no draw is nearly empty or nearly full.

    Args:
        noise: (B, L, L) standard normal.
        aspect: (B, 2) smaller side of the patch divided by its (height, width), in (0, 1].
        smooth: standard deviation of the low pass, as a share of the smaller side.
        feather: standard deviation of the soft edge, as a share of the smaller side.

    Returns:
        (B, L, L) in [0, 1], 0 on the border.
    """
    nodes = noise.shape[-1]
    axis = _axis(nodes, noise.device)
    radius = axis[:, None].square() + axis[None, :].square()
    ellipse = radius < 1
    scale = aspect * (nodes - 1)
    low_pass = _gaussian_matrix(smooth * scale.flatten(), nodes).unflatten(0, aspect.shape)
    blob = low_pass[:, 0] @ noise @ low_pass[:, 1].transpose(1, 2)
    blob = (blob - blob.amin(dim=(1, 2), keepdim=True)) * (1 - radius).clamp(min=0).sqrt()
    median = blob.flatten(1)[:, ellipse.flatten()].median(dim=1).values
    hard = ((blob > median[:, None, None]) & ellipse).to(noise.dtype)
    blur = _gaussian_matrix(feather * scale.flatten(), nodes).unflatten(0, aspect.shape)
    soft = (blur[:, 0] @ hard @ blur[:, 1].transpose(1, 2)).clamp(0, 1)
    return F.pad(soft[:, 1:-1, 1:-1], (1, 1, 1, 1))


@dataclass(frozen=True)
class Elastic:
    """Deform a patch elastically and glue it in through a random soft shape (Section 3.2, Figure 5).

    A control grid moves by Gaussian displacements under a bell centred in the patch ("gaussian distortion"); the patch
    is sampled bilinearly at the moved positions, reflected at its borders, so its colours are nearly kept.

    Args:
        patch: smallest and largest side of the patch, as shares of the image's.
        nodes: fewest and most control nodes per side; the outer ones do not move.
        displacement: range of the displacements' standard deviation, as shares of the patch's smaller side.
        furthest: displacements are clipped to this share of the patch's smaller side.
        brightness_probability, brightness: how often, and in which range, the deformed patch is multiplied.
        smallest_change: draws whose mean absolute change is below this are replaced...
        tries: ...by the first of this number of draws that does not, or by the strongest of them.

    Raises:
        UserError: a value is out of its range.
    """

    patch: tuple[float, float] = (0.10, 0.40)
    nodes: tuple[int, int] = (4, 8)
    displacement: tuple[float, float] = (0.05, 0.20)
    furthest: float = 0.35
    brightness_probability: float = 0.5
    brightness: tuple[float, float] = (0.7, 1.3)
    smallest_change: float = 0.01
    tries: int = 10

    def __post_init__(self) -> None:
        _check_shares("method.elastic.patch", self.patch)
        if self.nodes[0] < 3 or self.nodes[0] > self.nodes[1]:
            raise UserError(f"method.elastic.nodes must be 3 <= fewest <= most, got {self.nodes}")
        if self.tries < 1:
            raise UserError(f"method.elastic.tries must be at least 1, got {self.tries}")

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        height, width = size = image.shape[-2], image.shape[-1]
        kinds, control, spread, boxes = self._candidates(draws, size)
        chosen = self._first_visible(image, kinds, control, spread, boxes)
        box, row = boxes.of(chosen), torch.arange(len(image), device=image.device)
        aspect = box.smaller_side()[:, None] / torch.stack([box.height, box.width], dim=1)
        mask = shape_mask(draws.normal(LATTICE, LATTICE), aspect)
        moved = self._displacement(kinds[row, chosen], control[row, chosen], spread[row, chosen], LATTICE, box)

        window = Windows.around(box, size, (_longest(height, self.patch[1]), _longest(width, self.patch[1])))
        dy, dx, m = window.render(torch.cat([moved, mask[:, None]], dim=1), box).unbind(1)
        last = box.height[:, None, None] - 1, box.width[:, None, None] - 1
        deformed = _sample(
            image,
            _reflect(window.y + dy, last[0]) + box.top[:, None, None],
            _reflect(window.x + dx, last[1]) + box.left[:, None, None],
        )
        lit, factor = draws.uniform(1, 1, 1), draws.uniform(1, 1, 1, low=self.brightness[0], high=self.brightness[1])
        deformed = torch.where(lit < self.brightness_probability, deformed * factor, deformed).clamp(0, 1)
        m = (m * window.interior(box))[:, None]
        corrupted = window.paste(image, torch.lerp(window.cut(image), deformed, m))
        return corrupted, window.paste(torch.zeros_like(image[:, :1]), m)

    def _candidates(self, draws: Draws, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Boxes]:
        fewest, most = self.nodes
        kinds = draws.integers(self.tries, low=0, high=most - fewest)
        control = draws.normal(self.tries, 2, most, most)
        spread = draws.uniform(self.tries, low=self.displacement[0], high=self.displacement[1])
        return kinds, control, spread, draw_boxes(draws, self.tries, size, self.patch)

    def _displacement(self, kind: Tensor, control: Tensor, spread: Tensor, nodes: int, box: Boxes) -> Tensor:
        """(N,) kinds, (N, 2, g, g) control nodes, (N,) spreads -> (N, 2, nodes, nodes) displacements in pixels."""
        weights, inner = _interpolation(*self.nodes, nodes, control.device)
        weight, inner = weights[kind][:, None], inner[kind][:, None]
        moved = weight @ (control * inner[..., :, None] * inner[..., None, :]) @ weight.transpose(-1, -2)
        moved = moved * _bell(nodes, control.device) * spread[:, None, None, None]
        return moved.clamp(-self.furthest, self.furthest) * box.smaller_side()[:, None, None, None]

    def _first_visible(self, image: Tensor, kind: Tensor, control: Tensor, spread: Tensor, boxes: Boxes) -> Tensor:
        """(B,) index of the first candidate that changes the patch enough, else of the one that changes it most."""
        flat = Boxes(*(f.flatten() for f in (boxes.top, boxes.left, boxes.height, boxes.width)))
        moved = self._displacement(kind.flatten(), control.flatten(0, 1), spread.flatten(), PROBES, flat)
        last_y, last_x = (side[:, None, None] - 1 for side in (flat.height, flat.width))
        share = (_axis(PROBES, image.device) + 1) / 2
        y, x = (share[:, None] * last_y).round(), (share[None, :] * last_x).round()
        top, left = flat.top[:, None, None], flat.left[:, None, None]
        y, x = torch.broadcast_tensors(y, x)
        there = torch.stack([_reflect(y + moved[:, 0], last_y) + top, _reflect(x + moved[:, 1], last_x) + left])
        here = torch.stack([y + top, x + left])
        both = torch.stack([there, here]).unflatten(2, (len(image), self.tries))  # (2, 2, B, T, PROBES, PROBES)
        points = both.movedim(2, 0).reshape(len(image), 2, 2, -1, PROBES)  # B, there/here, y/x, T * PROBES, PROBES
        values = _sample(image, points[:, :, 0].flatten(1, 2), points[:, :, 1].flatten(1, 2))
        values = values.unflatten(2, (2, self.tries, PROBES))
        change = (values[:, :, 0] - values[:, :, 1]).abs().mean(dim=(1, 3, 4))
        visible = change >= self.smallest_change
        return torch.where(visible.any(dim=1), visible.float().argmax(dim=1), change.argmax(dim=1))


# -- occlusion by shapes with foreign content ---------------------------------------------------------------------


def fractal_content(draws: Draws, size: tuple[int, int]) -> Tensor:
    """Procedural images unlike the training data: coloured noise over octaves, (B, 3, H, W) in [0, 1]."""
    roughness = draws.uniform(1, 1, 1, low=0.3, high=0.9)
    side, longest = 4, max(size)
    field = draws.normal(3, side, side)
    while side < longest:
        side *= 2
        field = F.interpolate(field, scale_factor=2, mode="bilinear", align_corners=False)
        field = field + roughness ** math.log2(side / 2) * draws.normal(3, side, side)
    field = field[..., : size[0], : size[1]]
    field = field / field.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    grey = draws.uniform(1, 1, 1)
    field = torch.lerp(field, field.mean(dim=1, keepdim=True).expand_as(field), grey)
    colour, contrast = draws.uniform(3, 1, 1), draws.uniform(1, 1, 1, low=0.05, high=0.3)
    return (colour + contrast * field).clamp(0, 1)


def bank_content(bank: Tensor, draws: Draws, size: tuple[int, int]) -> Tensor:
    """A random image of a bank for each row, mirrored at random: (N, 3, h, w) uint8 -> (B, 3, H, W) in [0, 1]."""
    chosen = bank[draws.integers(low=0, high=len(bank) - 1)].float() / 255
    chosen = F.interpolate(chosen, size, mode="bilinear", align_corners=False, antialias=True)
    flip = draws.uniform(2, 1, 1, 1) < 0.5
    chosen = torch.where(flip[:, 0], chosen.flip(-1), chosen)
    return torch.where(flip[:, 1], chosen.flip(-2), chosen)


def read_bank(folder: str, side: int, most: int = 256) -> Tensor:
    """Images below a folder as an (N, 3, side, side) uint8 bank of foreign content.

    Args:
        folder: with image files, at any depth.
        side: of the bank's images, in pixels.
        most: N is at most this; where there are more files, every so many of the sorted paths is taken.

    Raises:
        UserError: no such folder, or no image in it.
    """
    from PIL import Image

    root = Path(folder).expanduser()
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(
            f"method.foreign={folder}: expected a folder with images ({', '.join(IMAGE_SUFFIXES)}), found none; "
            "give another folder, or method.foreign=null for procedural content"
        )
    rows = np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    images = [np.asarray(Image.open(files[row]).convert("RGB").resize((side, side))) for row in rows]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Occlusion:
    """Cover the image with several shapes that show other content (Section 4.3: cable, screw, transistor).

    Args:
        shapes: fewest and most shapes; each is an ellipse, a rectangle or a polygon.
        side: range of a shape's sides, as shares of the image's.
        vertices: fewest and most vertices of a polygon.
        opacity: range of the share of the image that the content replaces, one draw per image.
        matched: how often the content is as bright on average as the image, so that its structure alone is foreign.
        bank: (N, 3, h, w) uint8 images to show; None shows procedural noise.

    On images without colour the content has none either: it would be found by its colour alone.

    Raises:
        UserError: a value is out of its range.
    """

    shapes: tuple[int, int] = (1, 5)
    side: tuple[float, float] = (0.05, 0.30)
    vertices: tuple[int, int] = (3, 8)
    opacity: tuple[float, float] = (1.0, 1.0)
    matched: float = 0.0
    bank: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shares("method.occlusion.side", self.side)
        if not 0 <= self.opacity[0] <= self.opacity[1] <= 1:
            raise UserError(f"method.occlusion.opacity must be two shares 0 <= least <= most <= 1, got {self.opacity}")
        if not 1 <= self.shapes[0] <= self.shapes[1]:
            raise UserError(f"method.occlusion.shapes must be 1 <= fewest <= most, got {self.shapes}")
        if not 3 <= self.vertices[0] <= self.vertices[1]:
            raise UserError(f"method.occlusion.vertices must be 3 <= fewest <= most, got {self.vertices}")
        if not 0 <= self.matched <= 1:
            raise UserError(f"method.occlusion.matched must lie in [0, 1], got {self.matched}")

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        size = image.shape[-2], image.shape[-1]
        most = self.shapes[1]
        boxes = draw_boxes(draws, most, size, self.side)
        flat = Boxes(*(f.flatten() for f in (boxes.top, boxes.left, boxes.height, boxes.width)))
        shapes = self._lattice(draws).flatten(0, 1)[:, None]
        window = Windows.around(flat, size, (_longest(size[0], self.side[1]), _longest(size[1], self.side[1])))
        soft = window.render(shapes, flat)[:, 0] * window.interior(flat)
        visible = torch.arange(most, device=image.device) < draws.integers(1, low=self.shapes[0], high=most)
        soft = soft.unflatten(0, (len(image), most)) * visible[:, :, None, None]
        empty = image.new_zeros(len(image), size[0] * size[1])
        index = window.index.unflatten(0, (len(image), most)).flatten(1)
        mask = empty.scatter_reduce(1, index, soft.flatten(1), "amax").view(len(image), 1, *size)
        content = fractal_content(draws, size) if self.bank is None else bank_content(self.bank, draws, size)
        content = self._fitted(content.to(image.dtype), image, draws)
        opacity = draws.uniform(1, 1, 1, low=self.opacity[0], high=self.opacity[1])
        return torch.lerp(image, content, mask * opacity), mask

    def _fitted(self, content: Tensor, image: Tensor, draws: Draws) -> Tensor:
        """Content without colour on images without, and on some as bright as the image."""
        colourless = (image.amax(1, keepdim=True) - image.amin(1, keepdim=True)).amax((2, 3), keepdim=True) < 1e-6
        content = torch.where(colourless, content.mean(1, keepdim=True), content)
        shift = image.mean((2, 3), keepdim=True) - content.mean((2, 3), keepdim=True)
        return torch.where(draws.uniform(1, 1, 1) < self.matched, (content + shift).clamp(0, 1), content)

    def _lattice(self, draws: Draws) -> Tensor:
        """(B, shapes, L, L) soft shapes in [0, 1], 0 on the border."""
        most, extent = self.shapes[1], 0.9
        device = draws.generator.device
        x, y = (c.to(device) for c in torch.meshgrid(_axis(LATTICE, device), _axis(LATTICE, device), indexing="xy"))
        ellipse, rectangle = x.square() + y.square() < extent**2, torch.maximum(x.abs(), y.abs()) < extent
        count = draws.integers(most, low=self.vertices[0], high=self.vertices[1])[..., None]
        order = torch.arange(self.vertices[1], device=device)
        order = torch.minimum(order, count - 1)  # vertices beyond the count repeat the last one
        jitter, radius = draws.uniform(2, most, self.vertices[1]).unbind(1)
        angle = (order + 0.8 * jitter.gather(-1, order)) * (2 * math.pi / count) + draws.uniform(most, 1) * 2 * math.pi
        radius = extent * (0.4 + 0.6 * radius.gather(-1, order))
        polygon = _inside_polygon(radius * angle.cos(), radius * angle.sin(), x, y)
        kind = draws.integers(most, 1, 1, low=0, high=2)
        hard = torch.where(kind == 0, ellipse, torch.where(kind == 1, rectangle, polygon)).float()
        blur = _gaussian_matrix(torch.full((1,), 1.5, device=device), LATTICE)
        return F.pad((blur @ hard @ blur.transpose(1, 2)).clamp(0, 1)[..., 1:-1, 1:-1], (1, 1, 1, 1))


def _inside_polygon(vertex_x: Tensor, vertex_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Even-odd rule: vertices (..., V) and points (L, L) -> (..., L, L) bool."""
    ax, ay = vertex_x[..., None, None], vertex_y[..., None, None]
    bx, by = ax.roll(-1, dims=-3), ay.roll(-1, dims=-3)
    straddles = (ay > y) != (by > y)
    slope = (bx - ax) / torch.where(by == ay, torch.ones_like(by), by - ay)
    crossings = (straddles & (x < ax + slope * (y - ay))).sum(dim=-3)
    return crossings % 2 == 1


# -- simple corruptions -------------------------------------------------------------------------------------------


def _rectangle(image: Tensor, draws: Draws, patch: tuple[float, float]) -> Tensor:
    """(B, 1, H, W): 1 inside one rectangle of each image, with sides between the shares `patch`."""
    first = torch.zeros(len(image), dtype=torch.long, device=image.device)
    return _box_mask(draw_boxes(draws, 1, (image.shape[-2], image.shape[-1]), patch).of(first), image)


@dataclass(frozen=True)
class Cutout:
    """Set a rectangular patch to zero: the comparison of Section 3.2 ("simple cut-out") and Figure 11 ("zeros").

    Args:
        patch: smallest and largest side of the patch, as shares of the image's.

    Raises:
        UserError: not 0 < smallest <= largest <= 1.
    """

    patch: tuple[float, float] = (0.10, 0.40)

    def __post_init__(self) -> None:
        _check_shares("method.cutout.patch", self.patch)

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        mask = _rectangle(image, draws, self.patch)
        return image * (1 - mask), mask


@dataclass(frozen=True)
class Swap:
    """Replace a rectangular patch by the same place of another image of the batch: Section 3.2, "patch swapping", the
    boundary case x̂_S = y_S of Proposition 1.

    On several devices the other image is one of the device's own. An image that is alone in its batch stays as it is,
    with an empty mask.

    Args:
        patch: smallest and largest side of the patch, as shares of the image's.

    Raises:
        UserError: not 0 < smallest <= largest <= 1.
    """

    patch: tuple[float, float] = (0.10, 0.40)

    def __post_init__(self) -> None:
        _check_shares("method.swap.patch", self.patch)

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        mask = _rectangle(image, draws, self.patch)
        further = draws.integers(low=1, high=max(1, len(image) - 1))
        if len(image) == 1:
            return image, torch.zeros_like(image[:, :1])
        partner = (torch.arange(len(image), device=image.device) + further) % len(image)
        return torch.where(mask.bool(), image[partner], image), mask


@dataclass(frozen=True)
class Untouched:
    """No corruption and an empty mask: objective (1) is then a plain autoencoder's."""

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return image, torch.zeros_like(image[:, :1])


def swap_patch(image: Tensor, other: Tensor, side: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Replace a square at a random position by the same square of another image (Figure 9).

    Args:
        image, other: (B, 3, H, W) in [0, 1].
        side: of the square, in pixels.
        draws: for B rows.

    Returns:
        (B, 3, H, W) in [0, 1] and its mask, (B, 1, H, W), 0 or 1.

    Raises:
        UserError: the square does not fit the image.
    """
    height, width = image.shape[-2:]
    if not 0 < side <= min(height, width):
        raise UserError(f"a swapped patch must be 1 to {min(height, width)} pixels wide, got {side}")
    u = draws.uniform(2)
    top, left = ((u[:, axis] * (extent - side + 1)).long() for axis, extent in enumerate((height, width)))
    sides = torch.full_like(top, side)
    mask = _box_mask(Boxes(top.clamp(max=height - side), left.clamp(max=width - side), sides, sides), image)
    return torch.where(mask.bool(), other, image), mask


def _box_mask(box: Boxes, image: Tensor) -> Tensor:
    """(B, 1, H, W): 1 inside the box."""
    y, x = (torch.arange(side, device=image.device) for side in image.shape[-2:])
    rows = (y >= box.top[:, None]) & (y < (box.top + box.height)[:, None])
    cols = (x >= box.left[:, None]) & (x < (box.left + box.width)[:, None])
    return (rows[:, None, :, None] & cols[:, None, None, :]).to(image.dtype)


# -- combinations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alternately:
    """Each row is corrupted by `second` with the given probability, else by `first` (Section 4.3).

    Args:
        first, second: corruptions of this module.
        probability: of the second, in [0, 1].
    """

    first: Corruption
    second: Corruption
    probability: float

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        take = draws.uniform(1, 1, 1) < self.probability
        first, second = self.first(image, draws), self.second(image, draws)
        return torch.where(take, second[0], first[0]), torch.where(take, second[1], first[1])


@dataclass(frozen=True)
class Rotated:
    """After `first`, some rows are turned about their centre while the target stays upright (Section 4.3: transistor).

    The mask of a turned row is where it differs from the clean image by more than `threshold`, widened by `widen`
    pixels and softened; pixels outside it (which differ less) are set to the clean ones.

    Args:
        first: a corruption of this module.
        probability: of turning a row, in [0, 1].
        largest: angles are U(-largest, largest) degrees.
        threshold: grey levels in [0, 1].
        widen: pixels.
        soften: standard deviation of the mask's Gaussian blur, in pixels.
    """

    first: Corruption
    probability: float
    largest: float = 180.0
    threshold: float = 1 / 255
    widen: int = 3
    soften: float = 2.0

    def __call__(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        corrupted, mask = self.first(image, draws)
        radians = draws.uniform(low=-self.largest, high=self.largest) * (math.pi / 180)
        turned = turned_counter_clockwise(corrupted, radians)
        changed = ((turned - image).abs().amax(dim=1, keepdim=True) > self.threshold).to(image.dtype)
        changed = F.max_pool2d(changed, 2 * self.widen + 1, stride=1, padding=self.widen)
        changed = _blur(changed, self.soften)
        turned = torch.where(changed > 0, turned, image)
        take = draws.uniform(1, 1, 1) < self.probability
        return torch.where(take, turned, corrupted), torch.where(take, changed, mask)


def turned_counter_clockwise(image: Tensor, radians: Tensor) -> Tensor:
    """Turn (B, C, H, W) counter-clockwise by (B,) `radians` about the centre; the edge pixels fill the corners."""
    height, width = image.shape[-2:]
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=image.device, dtype=image.dtype)[None, :] - (width - 1) / 2
    cos, sin = radians.cos()[:, None, None], radians.sin()[:, None, None]
    return _sample(image, sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2)


def _blur(mask: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 1, H, W); beyond the border the edge goes on."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype) / sigma).square())
    kernel = kernel / kernel.sum()
    mask = F.conv2d(F.pad(mask, (reach,) * 4, mode="replicate"), kernel[None, None, :, None])
    return F.conv2d(mask, kernel[None, None, None, :]).clamp(0, 1)
