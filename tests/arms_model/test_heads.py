"""Equations 5 and 6 against values worked by hand; one matrix product against one pair at a time."""

import itertools
import math

import pytest
import torch

from arms_model.heads import Head, HeadSettings, clamped_atanh

CASES = list(itertools.product(("cosine", "dot"), ("query", "profile"), ("linear", "none")))


def make_head(kind: str = "cosine", partner: str = "query", projection: str = "linear", *, num_vlms: int = 4) -> Head:
    torch.manual_seed(1)
    settings = HeadSettings(kind=kind, classifier_input=partner, profile_projection=projection)
    head = Head(settings, fused_width=6, question_width=7, profile_width=5, num_vlms=num_vlms)
    with torch.no_grad():  # nothing at its neutral start, so that no term can hide
        head.norm.weight.uniform_(0.5, 1.5)
        head.norm.bias.uniform_(-0.5, 0.5)
        for parameter in head.per_vlm_parameters():
            parameter.uniform_(-0.5, 0.5)
    return head


def test_cosine_head_matches_equation_5_by_hand() -> None:
    settings = HeadSettings(profile_projection="none")
    head = Head(settings, fused_width=1, question_width=1, profile_width=2, num_vlms=2)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(2))
        head.project.bias.zero_()
    # [h ; q] = [3 ; 1]: the layer norm gives u = [1 ; -1].
    # p_1 = [1 ; 0]: cos = 1 / sqrt(2) = 0.70711, atanh = 0.88137. p_2 = [-1 ; 0]: -0.88137.
    logits = head(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.881374, -0.881374]]), atol=1e-4, rtol=0)


def test_dot_head_by_hand() -> None:
    settings = HeadSettings(kind="dot", profile_projection="none")
    head = Head(settings, fused_width=1, question_width=1, profile_width=2, num_vlms=1)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(2))
        head.project.bias.zero_()
        head.vlm_vectors.copy_(torch.tensor([[0.0, 2.0]]))
        head.vlm_bias.fill_(-1.0)
    # u = [1 ; -1] as above; w + e = [4 ; 2]; (4 - 2) / sqrt(2) - 1 = 0.41421.
    logits = head(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[4.0, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[math.sqrt(2) - 1]]), atol=1e-4, rtol=0)


def test_clamped_atanh_matches_equation_6() -> None:
    s = torch.tensor([0.5, 0.99995, -0.99995, 1.0, 0.0], requires_grad=True)
    z = clamped_atanh(s)
    # atanh(0.5) = 0.5 ln 3 = 0.5493; atanh(0.99995) = 5.298, which the clamp brings to 5 without gradient.
    torch.testing.assert_close(z, torch.tensor([0.549306, 5.0, -5.0, 5.0, 0.0]), atol=1e-5, rtol=0)
    z.sum().backward()
    # d atanh / ds = 1 / (1 - s^2): 1.3333 at 0.5, 1 at 0.
    torch.testing.assert_close(s.grad, torch.tensor([4 / 3, 0.0, 0.0, 0.0, 1.0]), atol=1e-4, rtol=0)


def test_confidence_of_the_papers_head_stays_inside_its_limits() -> None:
    z = clamped_atanh(torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(torch.sigmoid(z), torch.tensor([0.0067, 0.9933]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "partner", "projection"), CASES)
def test_one_matrix_product_equals_scoring_one_by_one(kind: str, partner: str, projection: str) -> None:
    head = make_head(kind, partner, projection)
    fused, question, profiles = 3 * torch.randn(9, 6) + 1, torch.randn(9, 7), torch.randn(4, 5) - 0.5
    together = head(fused, question, profiles)
    for query in range(9):
        for vlm in range(4):
            alone = head.forward_pairs(
                fused[query : query + 1], question[query : query + 1], profiles[vlm : vlm + 1], torch.tensor([vlm])
            )
            torch.testing.assert_close(together[query, vlm], alone[0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("kind", "partner", "projection"), CASES)
def test_matrix_product_and_pairs_have_the_same_gradients(kind: str, partner: str, projection: str) -> None:
    fused, question, profiles = torch.randn(3, 6), torch.randn(3, 7), torch.randn(4, 5)
    gradients = []
    for as_pairs in (False, True):
        head = make_head(kind, partner, projection)
        if as_pairs:
            rows, columns = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
            logits = head.forward_pairs(fused[rows], question[rows], profiles[columns], columns)
        else:
            logits = head(fused, question, profiles).flatten()
        logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in head.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], atol=5e-3, rtol=5e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_bias_starts_at_the_log_odds_of_the_mean() -> None:
    head = make_head("dot")
    head.start_at(torch.tensor([0.75]), torch.tensor([2]))
    assert head.vlm_bias[2].item() == pytest.approx(math.log(3), abs=1e-6)


def test_dot_head_without_signal_leaves_every_vlm_at_its_mean() -> None:
    head = make_head("dot")
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.zero_()
    logits = head(torch.randn(2, 6), torch.randn(2, 7), torch.randn(4, 5))
    torch.testing.assert_close(logits, head.vlm_bias.expand(2, -1))


def test_autocast_leaves_the_head_in_float32() -> None:
    head = make_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(torch.randn(2, 6), torch.randn(2, 7), torch.randn(4, 5))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "text"), [({"clamp": 0.0}, "clamp must be above 0"), ({"atanh_eps": 0.0}, "atanh_eps")]
)
def test_settings_refuse_what_cannot_be_built(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        HeadSettings(**settings)
