"""What all baselines promise, and each one's own rule, on made-up queries."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from arms_model import metrics
from arms_model.baselines.fixed import BestPerTask, BestPerTaskAndAnswerType, BestSingle
from arms_model.baselines.knn import NearestNeighbours, Neighbours
from arms_model.baselines.logistic import LogisticPerVlm
from arms_model.baselines.mean import MeanOfBaselines
from arms_model.baselines.protocol import Baseline, Queries, vlm_means
from arms_model.baselines.ridge import HierarchicalRidge, into_unit
from arms_model.baselines.selection import cheapest, cost, equal_columns
from arms_model.errors import DataError

NONE = float("nan")
FIXED: list[Callable[[], Baseline]] = [BestSingle, BestPerTask, BestPerTaskAndAnswerType]
LEARNED: list[Callable[[], Baseline]] = [NearestNeighbours, LogisticPerVlm, HierarchicalRidge]
ALL = [*FIXED, *LEARNED, lambda: MeanOfBaselines([NearestNeighbours(), HierarchicalRidge()])]


def made_up(num_queries: int = 240, *, seed: int = 0) -> tuple[Queries, NDArray[np.float32]]:
    """Two benchmarks with overlapping pools; VLM 0 is right where the first question number is above 0, VLM 1 below."""
    random = np.random.default_rng(seed)
    question = random.normal(size=(num_queries, 6)).astype(np.float32)
    picture = random.normal(size=(num_queries, 5)).astype(np.float32)
    chance = np.stack([question[:, 0] > 0, question[:, 0] < 0, picture[:, 0] > 0, np.zeros(num_queries)], axis=1)
    correct = (random.random(chance.shape) < 0.1 + 0.8 * chance).astype(np.float32)
    first = np.arange(num_queries) % 2 == 0
    correct[first, 3] = NONE
    correct[~first, 2] = NONE
    queries = Queries(
        question=question,
        picture=picture,
        benchmark=np.where(first, "one", "two"),
        task=np.array(["count", "find", "read"])[np.arange(num_queries) % 3],
        answer_type=np.array(["choice", "free"])[np.arange(num_queries) // 2 % 2],
        group=np.array([f"g{number // 2}" for number in range(num_queries)]),
    )
    return queries, correct


def cell(benchmark: list[str], task: list[str], answer_type: list[str]) -> Queries:
    """Queries of which only benchmark, task and answer type matter."""
    nothing = np.zeros((len(task), 0), dtype=np.float32)
    names = np.array([f"g{number}" for number in range(len(task))])
    return Queries(
        question=nothing,
        picture=nothing,
        benchmark=np.array(benchmark),
        task=np.array(task),
        answer_type=np.array(answer_type),
        group=names,
    )


def fitted(make: Callable[[], Baseline], queries: Queries, correct: NDArray[np.float32]) -> Baseline:
    baseline = make()
    baseline.fit(queries, correct)
    return baseline


@pytest.mark.parametrize("make", ALL)
def test_scores_are_confidences_of_every_vlm(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up()
    scores = fitted(make, queries, correct).predict(queries.take(np.arange(7)))
    assert scores.shape == (7, 4)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("make", ALL)
def test_scores_follow_a_permutation_of_vlms_and_queries(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up()
    later, _ = made_up(40, seed=1)
    rows, columns = np.random.default_rng(2).permutation(len(queries)), np.array([2, 0, 3, 1])
    plain = fitted(make, queries, correct).predict(later)
    mixed = fitted(make, queries.take(rows), correct[rows][:, columns]).predict(later)
    np.testing.assert_allclose(mixed, plain[:, columns], atol=1e-4)


@pytest.mark.parametrize("make", LEARNED)
def test_learned_baselines_do_not_look_at_benchmark_or_task(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up()
    same = np.full(len(queries), "x")
    blind = dataclasses.replace(queries, benchmark=same, task=same, answer_type=same)
    plain = fitted(make, queries, correct).predict(queries)
    np.testing.assert_array_equal(fitted(make, blind, correct).predict(blind), plain)


@pytest.mark.parametrize("make", LEARNED)
def test_learned_baselines_find_what_the_best_single_vlm_cannot(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up(600)
    later, labels = made_up(300, seed=1)
    asked = ~np.isnan(labels)

    def em(which: Callable[[], Baseline]) -> float:
        scores = fitted(which, queries, correct).predict(later)
        return metrics.exact_match(metrics.outcomes(labels, metrics.choose(scores, asked)))

    assert em(make) > em(BestSingle) + 0.15


@pytest.mark.parametrize("make", ALL)
def test_vlm_asked_never_in_training_and_labels_all_alike_are_no_crash(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up(60)
    correct[:, 2] = NONE
    correct[~np.isnan(correct[:, 3]), 3] = 0.0
    scores = fitted(make, queries, correct).predict(queries)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("make", ALL)
def test_one_group_and_no_query_to_predict_are_no_crash(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up(20)
    one_group = dataclasses.replace(queries, group=np.full(20, "same"))
    assert fitted(make, one_group, correct).predict(queries.take(np.arange(0))).shape == (0, 4)


@pytest.mark.parametrize("make", ALL)
def test_training_part_without_labels_is_refused(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up(10)
    with pytest.raises(DataError, match="needs labels to learn from"):
        make().fit(queries, np.full_like(correct, NONE))


@pytest.mark.parametrize("make", [LogisticPerVlm, HierarchicalRidge])
def test_vectors_of_another_width_are_refused(make: Callable[[], Baseline]) -> None:
    queries, correct = made_up()
    wider = dataclasses.replace(queries, question=np.ones((len(queries), 7), dtype=np.float32))
    with pytest.raises(DataError, match="vectors are 7 wide, but those of the training part were 6"):
        fitted(make, queries, correct).predict(wider)


def test_queries_of_unequal_parts_are_refused() -> None:
    with pytest.raises(DataError, match="'benchmark': 1"):
        cell(["one"], ["count", "find"], ["free", "free"])


def test_vlm_means_leave_out_what_was_not_asked() -> None:
    correct = np.array([[1, NONE, NONE], [0, 0, NONE], [1, NONE, NONE], [NONE, 1, NONE]])
    np.testing.assert_allclose(vlm_means(correct), [2 / 3, 1 / 2, 3 / 5])  # never asked: 3 right of all 5 labels


def test_best_single_is_the_highest_mean_inside_the_benchmark() -> None:
    queries = cell(["one"] * 3 + ["two"] * 3, ["t"] * 6, ["free"] * 6)
    correct = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 1], [1, 1]], dtype=np.float32)
    scores = fitted(BestSingle, queries, correct).predict(cell(["two", "one", "new"], ["t"] * 3, ["free"] * 3))
    np.testing.assert_allclose(scores, [[1 / 3, 1], [2 / 3, 1 / 3], [3 / 6, 4 / 6]])  # unknown benchmark: all labels


def test_best_single_without_label_passes_to_the_next_in_training_order() -> None:
    queries = cell(["one"] * 2, ["t"] * 2, ["free"] * 2)
    correct = np.array([[1, 1, 0], [1, 0, 0]], dtype=np.float32)
    scores = fitted(BestSingle, queries, correct).predict(queries)
    assert metrics.choose(scores, np.array([[True, True, True], [False, True, True]])).tolist() == [0, 1]


def test_best_per_task_and_answer_type_falls_back_to_the_benchmark() -> None:
    queries = cell(["one"] * 4, ["count", "count", "find", "find"], ["free", "choice", "free", "free"])
    correct = np.array([[1, 0], [0, 1], [1, NONE], [1, NONE]], dtype=np.float32)
    baseline = fitted(BestPerTaskAndAnswerType, queries, correct)
    known = baseline.predict(cell(["one"] * 3, ["count", "count", "find"], ["free", "choice", "free"]))
    np.testing.assert_allclose(known, [[1, 0], [0, 1], [1, 1 / 2]])  # never asked in "find": its benchmark mean
    unknown = baseline.predict(cell(["one", "one"], ["find", "read"], ["choice", "free"]))
    np.testing.assert_allclose(unknown, [[3 / 4, 1 / 2]] * 2)


def test_best_per_task_keeps_equal_task_names_of_two_benchmarks_apart() -> None:
    queries = cell(["one", "two"], ["count", "count"], ["free", "free"])
    scores = fitted(BestPerTask, queries, np.array([[1, 0], [0, 1]], dtype=np.float32)).predict(queries)
    np.testing.assert_allclose(scores, [[1, 0], [0, 1]])


def on_circle(degrees: list[float]) -> Queries:
    """Queries whose question vectors have these directions and unequal lengths."""
    radians = np.deg2rad(degrees)
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]
    plain = cell(["one"] * len(degrees), ["t"] * len(degrees), ["free"] * len(degrees))
    return dataclasses.replace(plain, question=vectors.astype(np.float32))


def nearest(count: int, *, temperature: float = float("inf"), prior: float = 0.0) -> NearestNeighbours:
    return NearestNeighbours(grid=(Neighbours(count=count, temperature=temperature, prior=prior),))


def test_knn_takes_the_mean_label_of_the_nearest_by_angle() -> None:
    baseline = nearest(2)
    baseline.fit(on_circle([0, 10, 90]), np.array([[1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(baseline.predict(on_circle([5, 80])), [[0.5], [0.5]], atol=1e-6)
    np.testing.assert_allclose(baseline.predict(on_circle([0])), [[0.5]], atol=1e-6)


def test_knn_looks_for_neighbours_among_the_queries_a_vlm_was_asked() -> None:
    baseline = nearest(1)
    baseline.fit(on_circle([0, 10, 90]), np.array([[NONE, 1], [NONE, 0], [1, 0]]))
    np.testing.assert_allclose(baseline.predict(on_circle([1])), [[1, 1]], atol=1e-6)


def test_knn_weighs_by_temperature_and_prior_by_hand() -> None:
    # Cosines 1 and 0 with temperature 1: weights 1 and e^-1; the mean 1/2 has weight 2.
    baseline = nearest(2, temperature=1.0, prior=2.0)
    baseline.fit(on_circle([0, 90]), np.array([[1.0], [0.0]]))
    expected = (1 + 2 * 0.5) / (1 + np.exp(-1) + 2)
    np.testing.assert_allclose(baseline.predict(on_circle([0])), [[expected]], atol=1e-6)


def test_knn_counts_equal_questions_alike_even_beyond_the_number_of_neighbours() -> None:
    baseline = nearest(2)
    same = on_circle([0, 0, 0, 90])
    same = dataclasses.replace(same, question=same.question / np.linalg.norm(same.question, axis=1, keepdims=True))
    baseline.fit(same, np.array([[1.0], [0.0], [0.0], [1.0]]))
    np.testing.assert_allclose(baseline.predict(on_circle([0])), [[1 / 3]], atol=1e-6)


def test_ridge_shrinks_to_the_means_and_fits_without_shrinkage() -> None:
    queries, correct = made_up(400)
    flat = HierarchicalRidge(deviations=(1e9,), shared=1e9)
    flat.fit(queries, correct)
    scores = flat.predict(queries)
    assert np.ptp(scores, axis=0).max() < 1e-4
    loose = HierarchicalRidge(deviations=(1e-3,))
    loose.fit(queries, correct)
    assert np.ptp(loose.predict(queries)[:, 0]) > 0.5


def test_ridge_values_are_bent_by_hand_beyond_the_edges_alone() -> None:
    inside = np.array([0.05, 0.3, 0.5, 0.95])
    np.testing.assert_allclose(into_unit(inside), inside, atol=1e-12)
    # 1 lies 0.05 = one edge beyond 0.95: 1 - 0.05 / 2. 1.05 lies two beyond: 1 - 0.05 / 3; -0.05 mirrors it.
    np.testing.assert_allclose(into_unit(np.array([1.0, 1.05, -0.05])), [1 - 0.05 / 2, 1 - 0.05 / 3, 0.05 / 3])


def test_ridge_keeps_the_order_of_vlms_that_fit_beyond_1() -> None:
    values = np.linspace(-2, 3, 1001)
    bent = into_unit(values)
    assert (np.diff(bent) > 0).all()
    assert bent.min() > 0
    assert bent.max() < 1


def test_ridge_fitted_beyond_1_chooses_the_higher_vlm_and_not_the_first_by_name() -> None:
    # Both VLMs' labels rise along the question; the second's rise steeper, so far out it is the better one, and both
    # lie beyond 1 there.
    x = np.linspace(-1, 1, 200)
    plain = cell(["one"] * 200, ["t"] * 200, ["free"] * 200)
    queries = dataclasses.replace(plain, question=np.stack([x, -x], axis=1).astype(np.float32))
    correct = np.stack([x > -0.2, x > 0], axis=1).astype(np.float32)
    ridge = HierarchicalRidge(deviations=(1e-3,), shared=1e-3)
    ridge.fit(queries, correct)
    far = dataclasses.replace(queries, question=queries.question * 9).take(np.array([199]))
    (scores,) = ridge.predict(far)
    assert scores.min() > 0.975  # the values are above 1
    assert scores[1] > scores[0]


def test_mean_of_baselines_is_the_mean_of_the_parts() -> None:
    queries, correct = made_up()
    both = fitted(lambda: MeanOfBaselines([BestSingle(), BestPerTask()]), queries, correct).predict(queries)
    parts = [fitted(make, queries, correct).predict(queries) for make in (BestSingle, BestPerTask)]
    np.testing.assert_allclose(both, (parts[0] + parts[1]) / 2)


def test_cost_weighs_queries_alike_whatever_their_number_of_labels() -> None:
    scores, correct = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[1, 0], [0, NONE]])
    assert cost(scores, correct, criterion="brier") == pytest.approx(0.25 + 1)
    assert cost(scores, correct, criterion="em") == 1


def test_centred_cost_forgives_what_is_the_same_for_all_vlms_of_a_query() -> None:
    scores, correct = np.array([[0.2, 0.8, 0.9], [0.3, 0.7, 0.0]]), np.array([[0.5, 1.1, NONE], [0, 1, NONE]])
    # Errors -.3 and -.3 centre to 0 and 0; +.3 and -.3 stay.
    assert cost(scores, correct, criterion="centred") == pytest.approx(0.09)


def test_cheapest_adds_folds_up_and_has_a_default() -> None:
    assert cheapest([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.0}], "none") == "b"
    assert cheapest([], "none") == "none"


def test_equal_columns_stand_together() -> None:
    together = equal_columns(np.array([[1, 0, 1], [0, 1, 0]]))
    assert [columns.tolist() for columns in together] == [[0, 2], [1]]
