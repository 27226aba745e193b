"""The equations of CBiGAN and, with alpha = 0, of EGBAD as that paper trains it.

Symbols as in the paper: x image, z latent, E encoder, G generator, D critic on pairs (image, latent), alpha the weight
of the consistency term, lambda the weight of the feature term in the anomaly score.

Source: Carrara et al. 2020, "Combining GANs and AutoEncoders for Efficient Anomaly Detection".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Critic = Callable[[Tensor, Tensor], Tensor]


def critic_loss(real: Tensor, generated: Tensor) -> Tensor:
    """L_D = mean D(G(z), z) - mean D(x, E(x)): the critic rates encoded images high and generated ones low.

    Source: CBiGAN, Eq. 6 (the gradient penalty is added where the terms meet).

    Args:
        real: (B,) critic values D(x, E(x)), any range.
        generated: (B,) critic values D(G(z), z), any range.

    Returns:
        () float, any sign.
    """
    return generated.mean() - real.mean()


def encoder_generator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """L_{E,G} = mean D(x, E(x)) - mean D(G(z), z), exactly the negative of `critic_loss`.

    Source: CBiGAN, Eq. 5.

    Args:
        real: (B,) critic values D(x, E(x)), any range.
        generated: (B,) critic values D(G(z), z), any range.

    Returns:
        () float, any sign.
    """
    return real.mean() - generated.mean()


def interpolated_pairs(
    image: Tensor,
    encoded: Tensor,
    generated: Tensor,
    latent: Tensor,
    epsilon: Tensor,
    pairing: Literal["joint", "crossed"] = "joint",
) -> tuple[Tensor, Tensor]:
    """Points between the two distributions that the critic compares, one epsilon per sample for image and latent.

    `joint` interpolates between the pairs (x, E(x)) and (G(z), z). `crossed` swaps the two latents, as the authors'
    released program does, so that its ends are (x, z) and (G(z), E(x)).

    Source: CBiGAN, section III-B, which regularises as Gulrajani et al. 2017 (WGAN-GP), Algorithm 1, line 6.

    Args:
        image: (B, C, H, W) images x.
        encoded: (B, Z) latents E(x).
        generated: (B, C, H, W) samples G(z).
        latent: (B, Z) latents z.
        epsilon: (B,) in [0, 1]; 1 gives the image's end.
        pairing: see above.

    Returns:
        (B, C, H, W) images and (B, Z) latents.
    """
    of_image, of_generated = (encoded, latent) if pairing == "joint" else (latent, encoded)
    return (
        torch.lerp(generated, image, epsilon.view(-1, *[1] * (image.dim() - 1))),
        torch.lerp(of_generated, of_image, epsilon.view(-1, 1)),
    )


def gradient_penalty(critic: Critic, image: Tensor, latent: Tensor) -> Tensor:
    """mean (||grad_(x,z) D(x, z)||_2 - 1)^2, two-sided, the norm taken over image and latent together.

    Source: CBiGAN, section III-B ("we regularize the norm of the gradient of D with respect to its inputs").
    1e-12 inside the root keeps its derivative finite where the gradient vanishes.

    Args:
        critic: (B, C, H, W), (B, Z) -> (B,); row i must depend on row i alone.
        image: (B, C, H, W) points at which the gradient is taken.
        latent: (B, Z) points at which the gradient is taken.

    Returns:
        () float, >= 0, differentiable in the critic's parameters.
    """
    image, latent = image.detach().requires_grad_(), latent.detach().requires_grad_()
    with torch.enable_grad():
        of_image, of_latent = torch.autograd.grad(critic(image, latent).sum(), (image, latent), create_graph=True)
    squared = of_image.square().flatten(1).sum(1) + of_latent.square().flatten(1).sum(1)
    return ((squared + 1e-12).sqrt() - 1).square().mean()


def l1_distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_1 of each row: L_R for images, L_R' for latents, L_fD for features.

    Source: CBiGAN, Eqs. 8, 9, 11 and 12.

    Args:
        a, b: (B, ...) of equal shape.

    Returns:
        (B,) float, >= 0, the sum over all but the first axis; for images in [-1, 1] at most twice their number of
        values.
    """
    return (a - b).abs().flatten(1).sum(1)


def consistency(distance: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """One half of L_C over a batch: of ||x - G(E(x))||_1 or of ||z - E(G(z))||_1.

    Source: CBiGAN, Eqs. 10 to 12. The paper writes the loss of one sample; the batch was summed in the program of the
    paper's time and averaged later, which differ by the factor B in the effective alpha.

    Args:
        distance: (B,) float, >= 0, see `l1_distance`.
        reduction: over the batch.

    Returns:
        () float, >= 0; zero if and only if the cycle is the identity on the batch.
    """
    return distance.sum() if reduction == "sum" else distance.mean()


def encoder_generator_terms(
    adversarial: Tensor, image_consistency: Tensor, latent_consistency: Tensor, alpha: float
) -> dict[str, Tensor]:
    """The summands of L*_{E,G} = (1 - alpha) L_{E,G} + alpha (L_R + L_R').

    Source: CBiGAN, Eqs. 10 and 13. alpha = 0 is EGBAD (a Wasserstein BiGAN), alpha = 1 a double autoencoder which never
    consults the critic; the sentence after Eq. 13 has the two the other way round, against the equation itself and
    against section V-B, which obtains EGBAD with alpha = 0.

    Args:
        adversarial: () L_{E,G}.
        image_consistency: () L_R over the batch.
        latent_consistency: () L_R' over the batch.
        alpha: weight of the consistency, in [0, 1].

    Returns:
        three () floats whose sum is L*_{E,G}.
    """
    return {
        "adversarial": (1 - alpha) * adversarial,
        "image_consistency": alpha * image_consistency,
        "latent_consistency": alpha * latent_consistency,
    }


def anomaly_score(reconstruction: Tensor, feature: Tensor, lambda_: float) -> Tensor:
    """A(x) = (1 - lambda) L_R(x) + lambda L_fD(x).

    Source: CBiGAN, Eq. 7.

    Args:
        reconstruction: (B,) float, >= 0, ||x - G(E(x))||_1.
        feature: (B,) float, >= 0, ||f_D(x, E(x)) - f_D(G(E(x)), E(x))||_1.
        lambda_: weight of the features, in [0, 1].

    Returns:
        (B,) float, >= 0.
    """
    return (1 - lambda_) * reconstruction + lambda_ * feature
