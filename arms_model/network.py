"""The ARMS network: gate, fusion experts and their mixture (equations 2 to 4), closed by a head (`heads.py`).

What it takes are vectors: encoders stand before it and know nothing of it. The profile of a VLM enters only in the
head, so a query's vector is computed once and all K VLMs are scored by one matrix product.

Source: arXiv 2606.08970, section 4.2.

Shapes: question (B, D_q), picture (B, D_v), profiles (K, D_p), fused (B, D), logits (B, K).
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from arms_model.heads import Head, HeadSettings


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What decides the network's shape.

    Attributes:
        num_experts: E; the paper has 4.
        width: D of the fused vector; null takes the question's width, as in the paper (768).
        fusion: `pooled` is the paper as written (one picture vector is one key, so attention's softmax is 1 and the
            attended vector is `v W_V`); `concat` is its ablation: no attention, `FFN(LN([v ; q]))`.
        hidden_factor: the experts' hidden width is this times `width`. **Decision**: 4.
        dropout: inside the experts' feed-forward layer, 0 to below 1.
        fused_dropout: on the fused vector before the head (beyond the paper).
        input_dropout: on the standardised question and picture vectors (beyond the paper).
        top_k: experts kept by the gate, the others' weights set to 0 (beyond the paper); null runs all.
        standardise: shift and scale the inputs by the training part's mean and deviation (beyond the paper).
        picture_components: project the picture vector onto this many principal components of the training part
            (beyond the paper); null keeps it whole. Needs `standardise`.
        head: see `HeadSettings`.
    """

    num_experts: int = 4
    width: int | None = None
    fusion: Literal["pooled", "concat"] = "pooled"
    hidden_factor: float = 4.0
    dropout: float = 0.1
    fused_dropout: float = 0.0
    input_dropout: float = 0.0
    top_k: int | None = None
    standardise: bool = False
    picture_components: int | None = None
    head: HeadSettings = field(default_factory=HeadSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must lie between 1 and num_experts ({self.num_experts}), got {self.top_k}")
        for name in ("dropout", "fused_dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.picture_components is not None and not self.standardise:
            raise ValueError(
                "picture_components needs standardise: true (components are fitted on standardised vectors)"
            )


class Fused(NamedTuple):
    """A query after fusion.

    Attributes:
        vector: `h_i`, (B, D).
        question: `q_i` as the head takes it, (B, D_q).
        gate_weights: `g_i`, (B, E).
    """

    vector: Tensor
    question: Tensor
    gate_weights: Tensor


class InputScaler(nn.Module):
    """Standardises a vector and, where asked, projects it onto principal components; fitted on a training part.

    Beyond the paper. The fitted values are buffers: saved with the weights, never trained.

    Args:
        width: D of the vector that comes in.
        components: width of the vector that goes out; None keeps `width`.
    """

    def __init__(self, width: int, *, components: int | None = None) -> None:
        super().__init__()
        self.width_out = min(components, width) if components else width
        self.mean: Tensor
        self.scale: Tensor
        self.projection: Tensor | None
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("projection", torch.zeros(width, self.width_out) if components else None)

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Fit on `rows` (N, D): mean, deviation (constant columns become 0), components with a mean variance of 1."""
        self.mean.copy_(rows.mean(0))
        deviation = rows.std(0)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation, torch.zeros_like(deviation)))
        if self.projection is None:
            return
        standard = (rows - self.mean) * self.scale
        # The Gram matrix in float64 keeps the components the same on every run of the same machine.
        values, vectors = torch.linalg.eigh((standard.double().T @ standard.double()) / len(rows))
        keep = vectors[:, -self.width_out :].flip(1)  # (D, components), largest first
        keep = keep * torch.sign(keep.gather(0, keep.abs().argmax(0, keepdim=True)))
        # One scale for all: later components stay smaller, so that their noise is not blown up to the first one's size.
        self.projection.copy_(keep / values[-self.width_out :].mean().clamp_min(1e-8).sqrt())

    def forward(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B, width_out)."""
        standard = ((rows - self.mean) * self.scale).clamp(-8, 8)
        return standard if self.projection is None else standard @ self.projection


class Gate(nn.Module):
    """`g_i = softmax(W_g [q_i ; v_i] + b_g)` (equations 2 and 3).

    Args:
        width_in: D_q + D_v.
        num_experts: E.
        top_k: keep the k largest weights and scale them to sum 1 (beyond the paper); None keeps all.
    """

    def __init__(self, width_in: int, num_experts: int, *, top_k: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, num_experts)
        self.top_k = top_k

    def forward(self, question: Tensor, picture: Tensor) -> Tensor:
        """(B, D_q), (B, D_v) -> (B, E), rows sum to 1."""
        scores = self.linear(torch.cat([question, picture], dim=-1))
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            kept = scores.topk(self.top_k, dim=-1).indices
            scores = torch.full_like(scores, -math.inf).scatter(-1, kept, scores.gather(-1, kept))
        return torch.softmax(scores, dim=-1)


class FusionExperts(nn.Module):
    """All E experts in one batch of matrix products (equation 4): `h^e = FFN(LN([a ; q]))`.

    FFN = Linear -> GELU -> Dropout -> Linear. With `pooled`, `a = v W_V` per expert: one key makes the softmax 1, so
    `W_Q` and `W_K` are not built (they would never receive a gradient). With `concat`, `a = v`.
    Each query is fused on its own: other rows of the batch cannot change it.

    Args:
        question_width: D_q.
        picture_width: D_v.
        width: D of the fused vector.
        num_experts: E.
        fusion: `pooled` or `concat`.
        hidden: width of the feed-forward layer's hidden state.
        dropout: inside the feed-forward layer.
    """

    def __init__(
        self,
        *,
        question_width: int,
        picture_width: int,
        width: int,
        num_experts: int,
        fusion: Literal["pooled", "concat"],
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        attended = width if fusion == "pooled" else picture_width
        joined = attended + question_width
        self.value = (
            _expert_weight(num_experts, picture_width, width) if fusion == "pooled" else None
        )  # W_V (E, D_v, D)
        self.norm_gain = nn.Parameter(torch.ones(num_experts, 1, joined))
        self.norm_bias = nn.Parameter(torch.zeros(num_experts, 1, joined))
        self.inner = _expert_weight(num_experts, joined, hidden)
        self.inner_bias = nn.Parameter(torch.zeros(num_experts, 1, hidden))
        self.outer = _expert_weight(num_experts, hidden, width)
        self.outer_bias = nn.Parameter(torch.zeros(num_experts, 1, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, question: Tensor, picture: Tensor) -> Tensor:
        """(B, D_q), (B, D_v) -> (E, B, D)."""
        num_experts = len(self.inner)
        q = question.expand(num_experts, -1, -1)  # (E, B, D_q)
        v = picture.expand(num_experts, -1, -1)  # (E, B, D_v)
        attended = v if self.value is None else torch.bmm(v, self.value)
        joined = torch.cat([attended, q], dim=-1)
        normed = nn.functional.layer_norm(joined, joined.shape[-1:]) * self.norm_gain + self.norm_bias
        hidden = self.dropout(nn.functional.gelu(torch.baddbmm(self.inner_bias, normed, self.inner)))
        return torch.baddbmm(self.outer_bias, hidden, self.outer)


class ArmsNetwork(nn.Module):
    """Vectors of queries and of profiles in, logits out.

    Args:
        settings: the network's settings.
        question_width: D_q.
        picture_width: D_v.
        profile_width: D_p.
        num_vlms: K, for what the head keeps per VLM.
        learned_profiles: the ablation without profiles: `p_k` is a learned vector per VLM, and the profiles that are
            passed in are not looked at.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        question_width: int,
        picture_width: int,
        profile_width: int,
        num_vlms: int,
        learned_profiles: bool = False,
    ) -> None:
        super().__init__()
        # Unit deviation per number, as the layer norms of a text encoder leave it; the cosine head is free of scale.
        self.learned_profiles = nn.Parameter(torch.randn(num_vlms, profile_width)) if learned_profiles else None
        width = settings.width or question_width
        self.question_scaler = InputScaler(question_width) if settings.standardise else None
        self.picture_scaler = (
            InputScaler(picture_width, components=settings.picture_components) if settings.standardise else None
        )
        if self.picture_scaler is not None:
            picture_width = self.picture_scaler.width_out
        self.input_dropout = nn.Dropout(settings.input_dropout)
        self.gate = Gate(question_width + picture_width, settings.num_experts, top_k=settings.top_k)
        self.experts = FusionExperts(
            question_width=question_width,
            picture_width=picture_width,
            width=width,
            num_experts=settings.num_experts,
            fusion=settings.fusion,
            hidden=round(settings.hidden_factor * width),
            dropout=settings.dropout,
        )
        self.fused_dropout = nn.Dropout(settings.fused_dropout)
        self.head = Head(
            settings.head,
            fused_width=width,
            question_width=question_width,
            profile_width=profile_width,
            num_vlms=num_vlms,
        )

    def per_vlm_parameters(self) -> list[nn.Parameter]:
        """What is kept per VLM, rows in the VLMs' order: moved by that VLM's labels alone."""
        learned = [] if self.learned_profiles is None else [self.learned_profiles]
        return [*self.head.per_vlm_parameters(), *learned]

    def fit_inputs(self, question: Tensor, picture: Tensor) -> None:
        """Fit the input scalers on a training part: question (N, D_q), picture (N, D_v). Nothing to do without them."""
        if self.question_scaler is not None and self.picture_scaler is not None:
            self.question_scaler.fit(question)
            self.picture_scaler.fit(picture)

    def fuse(self, question: Tensor, picture: Tensor) -> Fused:
        """What a query is without any VLM: (B, D_q), (B, D_v) -> `Fused`. Computed once, scored against any VLMs."""
        if self.question_scaler is not None and self.picture_scaler is not None:
            question, picture = self.question_scaler(question), self.picture_scaler(picture)
        question, picture = self.input_dropout(question), self.input_dropout(picture)
        weights = self.gate(question, picture)  # (B, E)
        vector = torch.einsum("be,ebd->bd", weights, self.experts(question, picture))
        return Fused(vector=self.fused_dropout(vector), question=question, gate_weights=weights)

    def score(self, fused: Fused, profiles: Tensor) -> Tensor:
        """Logits of all VLMs by matrix products: `Fused` of B queries, profiles (K, D_p) -> (B, K)."""
        used = profiles if self.learned_profiles is None else self.learned_profiles
        logits: Tensor = self.head(fused.vector, fused.question, used)
        return logits

    def score_pairs(self, fused: Fused, profiles: Tensor, vlms: Tensor) -> Tensor:
        """Logits of pairs, one at a time as the paper writes them.

        Args:
            fused: of the query of each pair, P rows.
            profiles: (P, D_p), the profile of each pair's VLM.
            vlms: (P,) the VLMs' columns, for what the network keeps per VLM.

        Returns:
            (P,) logits.
        """
        used = profiles if self.learned_profiles is None else self.learned_profiles[vlms]
        return self.head.forward_pairs(fused.vector, fused.question, used, vlms)

    def forward(self, question: Tensor, picture: Tensor, profiles: Tensor) -> Tensor:
        """Logits of all VLMs: (B, D_q), (B, D_v), (K, D_p) -> (B, K)."""
        return self.score(self.fuse(question, picture), profiles)


def _expert_weight(num_experts: int, width_in: int, width_out: int) -> nn.Parameter:
    """(E, in, out), each expert initialised like `nn.Linear`."""
    bound = 1 / math.sqrt(width_in)
    return nn.Parameter(torch.empty(num_experts, width_in, width_out).uniform_(-bound, bound))
