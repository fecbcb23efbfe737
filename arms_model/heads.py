"""The classifier (equations 5 and 6): from a query's fused vector and the VLMs' profiles to logits, and confidences.

Two heads share one form. Both join the fused vector with a partner, normalise, project by `P`, and compare with a VLM's
vector `w_k`:

    u = P LN([h_i ; partner]),   cosine (the paper): z_ik = clamp(atanh(cos(u, w_k)), -c, c)
                                 dot (ours):         z_ik = u . (w_k + e_k) / sqrt(D) + b_k

The partner is the question (`classifier_input: query`) or the profile (`profile`). For the profile the layer norm of a
concatenation separates into sums over its halves, so (B, K) scores stay a few matrix products: `forward`. The literal
reading, one pair at a time, is `forward_pairs`; a test holds them equal.

Source: arXiv 2606.08970, section 4.2. Shapes: fused (B, D_h), question (B, D_q), profiles (K, D_p).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What decides the head.

    Attributes:
        kind: `cosine` is the paper's; `dot` has no norm, so that a query without signal leaves every VLM at its mean.
        classifier_input: the fused vector's partner. **Decision**: the question; the profile is the other reading.
        profile_projection: `linear` passes profiles through a trainable map before the comparison. **Decision**: needed
            while the text encoder is frozen (frozen profile sentences have cosines up to .996 with each other).
        clamp: c of equation 6. **Decision**: 5.
        atanh_eps: the cosine is kept inside (-1 + eps, 1 - eps) before atanh. **Decision**: 1e-6.
        vlm_vectors: `dot` only: a learned vector `e_k` per VLM, zero at first and shrunk by weight decay.
    """

    kind: Literal["cosine", "dot"] = "cosine"
    classifier_input: Literal["query", "profile"] = "query"
    profile_projection: Literal["linear", "none"] = "linear"
    clamp: float = 5.0
    atanh_eps: float = 1e-6
    vlm_vectors: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.clamp <= 0:
            raise ValueError(f"clamp must be above 0, got {self.clamp}")
        if not 0 < self.atanh_eps < 0.5:
            raise ValueError(f"atanh_eps must lie in (0, 0.5), got {self.atanh_eps}")


def clamped_atanh(cosine: Tensor, *, clamp: float = 5.0, eps: float = 1e-6) -> Tensor:
    """`z = clamp(atanh(s), -c, c)` in float32, `s` kept inside (-1 + eps, 1 - eps) (equation 6).

    Worked values: s = 0.5 gives 0.5493; s = 0.99995 gives 5 and no gradient.
    """
    inside = cosine.float().clamp(-1 + eps, 1 - eps)
    return torch.atanh(inside).clamp(-clamp, clamp)


class Head(nn.Module):
    """Joins, normalises, projects and compares; see the module's text.

    Args:
        settings: the head's settings.
        fused_width: D_h.
        question_width: D_q.
        profile_width: D_p.
        num_vlms: K.
    """

    def __init__(
        self, settings: HeadSettings, *, fused_width: int, question_width: int, profile_width: int, num_vlms: int
    ) -> None:
        super().__init__()
        self.settings = settings
        # Queries and VLMs are compared in the profile's own space, with a projection of the profile or without.
        width = profile_width
        partner = question_width if settings.classifier_input == "query" else profile_width
        self.norm = nn.LayerNorm(fused_width + partner, eps=NORM_EPS)
        self.project = nn.Linear(fused_width + partner, width)
        self.profile_projection = (
            nn.Linear(profile_width, width, bias=False) if settings.profile_projection == "linear" else None
        )
        is_dot = settings.kind == "dot"
        self.vlm_vectors = nn.Parameter(torch.zeros(num_vlms, width)) if is_dot and settings.vlm_vectors else None
        self.vlm_bias = nn.Parameter(torch.zeros(num_vlms)) if is_dot else None

    def per_vlm_parameters(self) -> list[nn.Parameter]:
        """What is kept per VLM, rows in the VLMs' order: empty for the cosine head."""
        return [p for p in (self.vlm_vectors, self.vlm_bias) if p is not None]

    @torch.no_grad()
    def start_at(self, means: Tensor, vlms: Tensor) -> None:
        """Start the bias of columns `vlms` (M,) at the log-odds of their means (M,); the cosine head has none."""
        if self.vlm_bias is not None:
            self.vlm_bias[vlms] = torch.logit(means.clamp(0.01, 0.99))

    def vlm_side(self, profiles: Tensor, vlms: Tensor | None = None) -> Tensor:
        """What a query's vector is compared with.

        Args:
            profiles: (K, D_p).
            vlms: (K,) columns of these profiles; None where they are all VLMs in order.

        Returns:
            (K, D).
        """
        compared = profiles if self.profile_projection is None else self.profile_projection(profiles)
        if self.vlm_vectors is not None:
            compared = compared + (self.vlm_vectors if vlms is None else self.vlm_vectors[vlms])
        return compared

    def forward(self, fused: Tensor, question: Tensor, profiles: Tensor) -> Tensor:
        """Logits of all VLMs by matrix products: (B, D_h), (B, D_q), (K, D_p) -> (B, K) float32."""
        with torch.autocast(fused.device.type, enabled=False):
            fused, question, profiles = fused.float(), question.float(), profiles.float()
            compared = self.vlm_side(profiles)
            if self.settings.classifier_input == "query":
                u = self.project(self.norm(torch.cat([fused, question], dim=-1)))  # (B, D)
                product, norms = u @ compared.T, u.norm(dim=-1, keepdim=True)  # (B, K), (B, 1)
            else:
                product, norms = self._with_profiles(fused, profiles, compared)  # (B, K) each
            return self._logits(product, norms, compared.norm(dim=-1), None)

    def forward_pairs(self, fused: Tensor, question: Tensor, profiles: Tensor, vlms: Tensor) -> Tensor:
        """Logits of pairs, literally as equation 5 reads: (P, D_h), (P, D_q), (P, D_p), (P,) -> (P,) float32."""
        with torch.autocast(fused.device.type, enabled=False):
            fused, question, profiles = fused.float(), question.float(), profiles.float()
            compared = self.vlm_side(profiles, vlms)
            partner = question if self.settings.classifier_input == "query" else profiles
            u = self.project(self.norm(torch.cat([fused, partner], dim=-1)))
            return self._logits((u * compared).sum(-1), u.norm(dim=-1), compared.norm(dim=-1), vlms)

    def _logits(self, product: Tensor, query_norm: Tensor, vlm_norm: Tensor, vlms: Tensor | None) -> Tensor:
        if self.vlm_bias is not None:
            bias = self.vlm_bias if vlms is None else self.vlm_bias[vlms]
            return product / math.sqrt(self.project.out_features) + bias
        cosine = product / (query_norm * vlm_norm).clamp_min(1e-8)
        return clamped_atanh(cosine, clamp=self.settings.clamp, eps=self.settings.atanh_eps)

    def _with_profiles(self, fused: Tensor, profiles: Tensor, compared: Tensor) -> tuple[Tensor, Tensor]:
        """`u_ik . w_k` and `|u_ik|` for `u_ik = P LN([h_i ; p_k])`, both (B, K), without building u (B, K, D).

        With A_i = P_h (gain_h h_i), B_k = P_p (gain_p p_k), g = P gain, d = P bias_LN + bias_P and mu, sigma the mean
        and deviation of the joined vector (sums over its halves): u_ik = (A_i + B_k - mu_ik g) / sigma_ik + d.
        """
        split = fused.shape[-1]
        total = split + profiles.shape[-1]
        gain_h, gain_p = self.norm.weight[:split], self.norm.weight[split:]
        weight_h, weight_p = self.project.weight[:, :split], self.project.weight[:, split:]
        a = (fused * gain_h) @ weight_h.T  # (B, D)
        b = (profiles * gain_p) @ weight_p.T  # (K, D)
        g = self.project.weight @ self.norm.weight  # (D,)
        d = self.project.weight @ self.norm.bias + self.project.bias  # (D,)
        mean = (fused.sum(-1, keepdim=True) + profiles.sum(-1)) / total  # (B, K)
        square = (fused.square().sum(-1, keepdim=True) + profiles.square().sum(-1)) / total
        sigma = (square - mean.square()).clamp_min(0).add(NORM_EPS).sqrt()
        inner_w = a @ compared.T + (b * compared).sum(-1) - mean * (compared @ g)
        inner_d = (a @ d)[:, None] + b @ d - mean * (g @ d)
        inner_square = (
            a.square().sum(-1, keepdim=True)
            + b.square().sum(-1)
            + mean.square() * g.square().sum()
            + 2 * (a @ b.T - mean * ((a @ g)[:, None] + b @ g))
        )
        product = inner_w / sigma + compared @ d
        square_norm = inner_square / sigma.square() + 2 * inner_d / sigma + d.square().sum()
        return product, square_norm.clamp_min(0).sqrt()
