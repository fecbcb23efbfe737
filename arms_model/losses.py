"""The training loss: binary cross-entropy on logits, over labelled pairs only.

A query that lacks labels for some VLMs is normal (a new VLM was asked only a sample): such a pair is masked, never
wrong.
Source: arXiv 2606.08970, equation 1.
"""

import torch
from torch import Tensor


def masked_bce(logits: Tensor, correct: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pairs that have a label.

    Args:
        logits: any shape, e.g. (B, K).
        correct: the same shape; 1 right, 0 wrong, NaN not asked.

    Returns:
        A scalar; 0 (with a gradient of 0) where no pair has a label.
    """
    losses, asked = _pair_losses(logits, correct)
    return losses.sum() / asked.sum().clamp_min(1)


def query_averaged_bce(logits: Tensor, correct: Tensor) -> Tensor:
    """Like `masked_bce` for (B, K), but every query counts the same however many VLMs answered it (not the paper's)."""
    losses, asked = _pair_losses(logits, correct)
    per_query = losses.sum(-1) / asked.sum(-1).clamp_min(1)
    return per_query.sum() / asked.any(-1).sum().clamp_min(1)


def contrast(logits: Tensor, correct: Tensor) -> Tensor:
    """How far predicted differences between VLMs are from the real ones, whatever the query's difficulty.

    The Brier score after confidences and labels have each lost their mean over the query's labelled VLMs. A choice
    depends on these differences alone; a query that all VLMs get right (or wrong) asks for none. Beyond the paper.

    Args:
        logits: (B, K).
        correct: (B, K); 1 right, 0 wrong, NaN not asked.

    Returns:
        A scalar in [0, 1]: the mean over labelled pairs.
    """
    asked = ~torch.isnan(correct)
    count = asked.sum(-1, keepdim=True).clamp_min(1)
    confidence = torch.where(asked, torch.sigmoid(logits.float()), torch.zeros_like(correct))
    label = torch.where(asked, correct, torch.zeros_like(correct))
    difference = (confidence - confidence.sum(-1, keepdim=True) / count) - (label - label.sum(-1, keepdim=True) / count)
    return torch.where(asked, difference, torch.zeros_like(difference)).square().sum() / asked.sum().clamp_min(1)


def load_balance(gate_weights: Tensor) -> Tensor:
    """How unevenly a batch uses the experts: (B, E) -> scalar from 1 (evenly) to E (one only); beyond the paper."""
    return gate_weights.shape[-1] * gate_weights.mean(0).square().sum()


def _pair_losses(logits: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pair, 0 where it was not asked, and which pairs were asked; shapes as `correct`."""
    asked = ~torch.isnan(correct)
    target = torch.where(asked, correct, torch.zeros_like(correct))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return torch.where(asked, losses, torch.zeros_like(losses)), asked
