"""A method's encoders as pretraining sees them, so that it can fill them without knowing the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


def _unchanged(image: Tensor) -> Tensor:
    return image


@dataclass(frozen=True)
class PretrainableEncoder:
    """One network of a method that pretraining may train in place.

    Args:
        network: normalised image (B, 3, S, S), or vector (B, D), -> (B, features). Its architecture stays as it is.
        features: how many numbers it returns.
        side: S; None for vectors.
        normalize: from images in [0, 1] to what the network takes.
        windows: it sees windows cut from larger images at their own scale, not whole images resized to S.
        published: timm name of the weights that fit the network strictly; None where there are none.
        decoder: (B, features) -> what the network takes; trained along by pretraining=autoencoder. None builds one.
    """

    network: nn.Module
    features: int
    side: int | None
    normalize: Callable[[Tensor], Tensor] = _unchanged
    windows: bool = False
    published: str | None = None
    decoder: nn.Module | None = None

    @property
    def image_side(self) -> int:
        """S, where the network takes images; a programming error where it takes vectors."""
        assert self.side is not None, "an encoder of vectors has no side"
        return self.side
