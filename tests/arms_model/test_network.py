"""Equations 2 to 4 against values worked by hand, and what must hold of the network whatever its weights."""

import math

import pytest
import torch

from arms_model.heads import HeadSettings
from arms_model.network import ArmsNetwork, FusionExperts, Gate, InputScaler, NetworkSettings


def small_network(*, num_vlms: int = 3, **settings: object) -> ArmsNetwork:
    torch.manual_seed(0)
    head = settings.pop("head", HeadSettings())
    return ArmsNetwork(
        NetworkSettings(num_experts=2, dropout=0.0, head=head, **settings),
        question_width=6,
        picture_width=4,
        profile_width=5,
        num_vlms=num_vlms,
    ).eval()


def test_gate_matches_equation_2_by_hand() -> None:
    gate = Gate(2, 2)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        gate.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    # [q ; v] = [2, 0.5]: scores 1*2 + 0 = 2 and 2*0.5 + 1 = 2, so both experts get one half;
    # [q ; v] = [0, 1]: scores 0 and 3, so the second gets 1 / (1 + e^-3) = 0.95257.
    weights = gate(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.5], [1.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5], [1 - 0.952574, 0.952574]]), atol=1e-6, rtol=0)


def test_gate_top_k_keeps_the_largest_and_sums_to_one() -> None:
    gate = Gate(2, 3, top_k=1)
    with torch.no_grad():
        gate.linear.weight.zero_()
        gate.linear.bias.copy_(torch.tensor([0.0, 5.0, 1.0]))
    weights = gate(torch.zeros(1, 1), torch.zeros(1, 1))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.0]]))


def test_expert_matches_equation_4_by_hand() -> None:
    experts = FusionExperts(
        question_width=1, picture_width=1, width=1, num_experts=1, fusion="pooled", hidden=1, dropout=0.0
    )
    with torch.no_grad():
        experts.value.fill_(3.0)  # W_V
        experts.inner.copy_(torch.tensor([[[1.0], [0.0]]]))
        experts.inner_bias.fill_(0.5)
        experts.outer.fill_(2.0)
        experts.outer_bias.fill_(-1.0)
    # v = 1: a = 3. q = 1. LN([3 ; 1]): mean 2, deviation 1, so [1 ; -1]. Linear: 1 * 1 + 0.5 = 1.5.
    # GELU(1.5) = 1.5 * Phi(1.5) = 1.5 * 0.9331928 = 1.3997892. Linear: 2 * 1.3997892 - 1 = 1.7995784.
    fused = experts(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(fused, torch.tensor([[[1.7995784]]]), atol=2e-5, rtol=0)  # LN's eps is 1e-5


def test_expert_with_concat_puts_the_picture_itself_beside_the_question() -> None:
    experts = FusionExperts(
        question_width=1, picture_width=1, width=1, num_experts=1, fusion="concat", hidden=1, dropout=0.0
    )
    assert experts.value is None
    with torch.no_grad():
        experts.inner.copy_(torch.tensor([[[1.0], [0.0]]]))
        experts.inner_bias.fill_(0.5)
        experts.outer.fill_(2.0)
        experts.outer_bias.fill_(-1.0)
    # [v ; q] = [3 ; 1]: as above from the layer norm on.
    fused = experts(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    torch.testing.assert_close(fused, torch.tensor([[[1.7995784]]]), atol=2e-5, rtol=0)


def test_pooled_attention_equals_softmax_over_one_key() -> None:
    experts = FusionExperts(
        question_width=6, picture_width=4, width=6, num_experts=1, fusion="pooled", hidden=8, dropout=0.0
    )
    q, v = torch.randn(3, 6), torch.randn(3, 4)
    w_q, w_k = torch.randn(6, 6), torch.randn(4, 6)
    for row in range(3):  # the paper's attention, each query with its own single key
        scores = (q[row] @ w_q) @ (v[row : row + 1] @ w_k).T / math.sqrt(6)
        attended = torch.softmax(scores, -1) @ (v[row : row + 1] @ experts.value[0])
        joined = torch.cat([attended, q[row]])
        inner = torch.nn.functional.layer_norm(joined, joined.shape) @ experts.inner[0] + experts.inner_bias[0, 0]
        expected = torch.nn.functional.gelu(inner) @ experts.outer[0] + experts.outer_bias[0, 0]
        torch.testing.assert_close(experts(q, v)[0, row], expected, atol=1e-5, rtol=1e-5)


def test_mixture_is_the_gate_weighted_sum_of_experts() -> None:
    network = small_network()
    q, v = torch.randn(5, 6), torch.randn(5, 4)
    weights, experts = network.gate(q, v), network.experts(q, v)
    expected = torch.stack([sum(weights[i, e] * experts[e, i] for e in range(2)) for i in range(5)])
    torch.testing.assert_close(network.fuse(q, v).vector, expected)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("partner", ["query", "profile"])
def test_other_rows_of_a_batch_leave_a_row_unchanged(kind: str, partner: str) -> None:
    network = small_network(head=HeadSettings(kind=kind, classifier_input=partner))
    q, v, p = torch.randn(4, 6), torch.randn(4, 4), torch.randn(3, 5)
    alone = network(q[:1], v[:1], p)
    torch.testing.assert_close(network(q, v, p)[:1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", ["pooled", "concat"])
@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_every_parameter_receives_a_finite_gradient(fusion: str, kind: str) -> None:
    network = small_network(fusion=fusion, head=HeadSettings(kind=kind)).train()
    logits = network(torch.randn(8, 6), torch.randn(8, 4), torch.randn(3, 5))
    torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.rand(8, 3).round()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_permuted_vlms_give_permuted_logits() -> None:
    network = small_network()
    q, v, p = torch.randn(4, 6), torch.randn(4, 4), torch.randn(3, 5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(network(q, v, p[order]), network(q, v, p)[:, order])


def test_learned_profiles_ignore_the_sentences() -> None:
    torch.manual_seed(0)
    widths = {"question_width": 6, "picture_width": 4, "profile_width": 5}
    network = ArmsNetwork(NetworkSettings(num_experts=1), num_vlms=3, learned_profiles=True, **widths).eval()
    q, v = torch.randn(2, 6), torch.randn(2, 4)
    torch.testing.assert_close(network(q, v, torch.randn(3, 5)), network(q, v, torch.zeros(3, 5)))


def test_input_scaler_standardises_and_drops_constant_columns() -> None:
    rows = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    scaler = InputScaler(2)
    scaler.fit(rows)
    # mean 2, deviation sqrt(2): (1 - 2) / sqrt(2) = -0.7071; the second column says nothing and becomes 0.
    torch.testing.assert_close(scaler(rows), torch.tensor([[-0.70711, 0.0], [0.70711, 0.0]]), atol=1e-4, rtol=0)


def test_input_scaler_components_are_uncorrelated_and_do_not_depend_on_the_rows_order() -> None:
    torch.manual_seed(0)
    rows = torch.randn(200, 3) @ torch.randn(3, 8)
    scaler, shuffled = InputScaler(8, components=3), InputScaler(8, components=3)
    scaler.fit(rows)
    shuffled.fit(rows[torch.randperm(200)])
    projected = scaler(rows)
    covariance = projected.T @ projected / 200
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-3, rtol=0)
    torch.testing.assert_close(projected, shuffled(rows), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"top_k": 9}, "top_k must lie between 1 and num_experts"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"picture_components": 4}, "picture_components needs standardise"),
    ],
)
def test_settings_refuse_what_cannot_be_built(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NetworkSettings(**settings)
