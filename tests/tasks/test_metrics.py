"""Metrics against figures worked out by hand, and against those of TAPE where the reference data is there."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protembed.tasks import metrics
from protembed.tasks.metrics import RANGES, Separation, bootstrap_interval, tape_precision, top_contacts
from protembed.training.finetune.calibration import fit_temperature
from tests.parity.test_reference import REFERENCE

TARGET = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 2, 0, 1])
RECORDED = REFERENCE / "metrics" / "metrics.npz"


def test_classes_by_hand() -> None:
    assert metrics.accuracy(TARGET, PREDICTED) == pytest.approx(6 / 10)
    assert metrics.macro_accuracy(TARGET, PREDICTED) == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert metrics.confusion_matrix(TARGET, PREDICTED, 3).tolist() == [[3, 1, 0], [1, 2, 0], [1, 1, 1]]
    table = metrics.class_table(TARGET, PREDICTED, 4)
    np.testing.assert_allclose(table.precision, [3 / 5, 2 / 4, 1, np.nan])
    np.testing.assert_allclose(table.recall, [3 / 4, 2 / 3, 1 / 3, np.nan])
    np.testing.assert_allclose(table.f1, [6 / 9, 4 / 7, 2 / 4, np.nan])
    assert table.support.tolist() == [4, 3, 3, 0]
    assert metrics.macro_f1(TARGET, PREDICTED) == pytest.approx((6 / 9 + 4 / 7 + 2 / 4) / 3)


def test_correlation_of_classes_by_hand() -> None:
    # Gorodkin: (c s - sum p t) / sqrt((s2 - sum p2) (s2 - sum t2)), c 6, s 10, p 5 4 1, t 4 3 3
    assert metrics.mcc(TARGET, PREDICTED) == pytest.approx((60 - 35) / np.sqrt((100 - 42) * (100 - 34)))
    assert metrics.mcc(TARGET, TARGET) == pytest.approx(1)
    assert metrics.mcc(TARGET, np.zeros(10, dtype=int)) == 0
    yes = np.array([True, True, False, False, True])
    assert metrics.f1(yes, np.array([True, False, True, False, True])) == pytest.approx(2 * 2 / (3 + 3))
    assert np.isnan(metrics.f1(~(yes | True), ~(yes | True)))


def test_macro_figures_see_only_classes_that_occur() -> None:
    target, predicted = np.array([5, 5, 7]), np.array([5, 2, 7])
    assert metrics.macro_accuracy(target, predicted) == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.macro_f1(target, predicted) == pytest.approx((0 + 2 / 3 + 1) / 3)


def test_spearman_with_ties_by_hand() -> None:
    x, y = np.array([1.0, 2, 2, 4]), np.array([10.0, 30, 20, 20])
    # ranks 1 2.5 2.5 4 and 1 4 2.5 2.5: covariance 2.25, variances 4.5 and 4.5
    assert metrics.spearman(x, y) == pytest.approx(2.25 / 4.5)
    assert metrics.spearman(x, -x) == pytest.approx(-1)
    assert np.isnan(metrics.spearman(x, np.ones(4)))
    assert metrics.rmse(np.array([0.0, 0]), np.array([3.0, 4])) == pytest.approx(np.sqrt(12.5))


def test_area_under_the_curve_by_hand() -> None:
    positive, score = np.array([True, True, False, False, False]), np.array([0.9, 0.4, 0.4, 0.1, 0.8])
    assert metrics.auc(positive, score) == pytest.approx((3 + 1 + 0.5) / 6)
    assert np.isnan(metrics.auc(positive | True, score))


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.4, 0.6]])
    # bin (0.9, 1]: one of two right, sure by 0.95; bins of 0.65 and 0.6: right, and wrong
    expected = (2 * abs(0.5 - 0.95) + abs(1 - 0.65) + abs(0 - 0.6)) / 4
    assert metrics.calibration_error(np.array([0, 1, 1, 0]), probabilities, bins=10) == pytest.approx(expected)
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.calibration_error(np.array([0, 1]), sure) == 0


def contact_case() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """A chain of 30: contacts at separations 6, 10, 15 and 25; scores put (0, 5), which is too near, first."""
    probability, contact = np.zeros((30, 30)), np.zeros((30, 30), dtype=bool)
    for rank, (i, j, true) in enumerate(
        [(0, 5, True), (0, 25, True), (1, 16, False), (2, 12, True), (3, 9, True), (4, 29, False), (5, 20, True)]
    ):
        probability[i, j] = probability[j, i] = 0.9 - rank / 10
        contact[i, j] = contact[j, i] = true
    return probability, contact, np.ones((30, 30), dtype=bool)


def test_contact_precision_by_hand() -> None:
    probability, contact, counted = contact_case()
    assert top_contacts(probability, contact, counted, top=6) == (4, 6)
    assert top_contacts(probability, contact, counted, top=2, apart=RANGES["short"]) == (2, 2)
    assert top_contacts(probability, contact, counted, top=2, apart=RANGES["medium"]) == (1, 2)
    assert top_contacts(probability, contact, counted, top=2, apart=RANGES["long"]) == (1, 2)
    assert top_contacts(probability, contact, counted, top=3, apart=RANGES["medium_long"]) == (1, 3)
    assert top_contacts(probability, contact, counted, top=9, apart=Separation(low=27)) == (0, 6)
    counted[0, 25] = False
    assert top_contacts(probability, contact, counted, top=6) == (3, 6)


@pytest.mark.parametrize(
    ("apart", "ranges"), [(6, "short"), (11, "short"), (12, "medium"), (23, "medium"), (24, "long")]
)
def test_ranges_include_both_of_their_ends(apart: int, ranges: str) -> None:
    probability, contact = np.zeros((40, 40)), np.zeros((40, 40), dtype=bool)
    probability[2, 2 + apart], contact[2, 2 + apart] = 1, True
    found = {
        name: top_contacts(probability, contact, np.ones((40, 40), dtype=bool), top=1, apart=separation)[0]
        for name, separation in RANGES.items()
    }
    expected = {ranges} | ({"medium_long"} if ranges in ("medium", "long") else set())
    assert {name for name, right in found.items() if right} == expected


def test_masked_pairs_in_both_definitions() -> None:
    probability, contact, counted = contact_case()
    counted[:] = False
    counted[2, 12] = counted[1, 16] = True
    label = np.where(counted, contact, -1)
    assert top_contacts(probability, contact, counted, top=6) == (1, 2)
    # TAPE fills the six places with four masked pairs, each of which counts as -1
    assert tape_precision([probability], [label]) == pytest.approx((1 - 4) / 6)


def test_bootstrap_draws_proteins() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(200) < 0.7, 50).astype(float)  # residues of a protein are all right or all wrong
    owners = np.repeat(np.arange(200), 50)
    mean = lambda rows: float(right[rows].mean())  # noqa: E731
    low, high = bootstrap_interval(mean, owners)
    assert low < right.mean() < high
    assert high - low == pytest.approx(4 * np.sqrt(0.7 * 0.3 / 200), rel=0.15)
    assert (low, high) == bootstrap_interval(mean, owners)
    assert (low, high) != bootstrap_interval(mean, owners, seed=1)
    alone = bootstrap_interval(mean, np.arange(len(right)), draws=200)
    assert alone[1] - alone[0] < 0.3 * (high - low)


def test_bootstrap_takes_whole_proteins_of_any_size() -> None:
    owners = np.array([3, 3, 3, 5, 8, 8])
    seen = []
    bootstrap_interval(lambda rows: seen.append(rows.tolist()) or 0.0, owners, draws=50)  # type: ignore[func-returns-value]
    blocks = {0: [0, 1, 2], 3: [3], 4: [4, 5]}
    for rows in seen:
        rest, drawn = list(rows), 0
        while rest:
            block = blocks[rest[0]]
            assert rest[: len(block)] == block
            rest, drawn = rest[len(block) :], drawn + 1
        assert drawn == 3
    assert bootstrap_interval(lambda rows: np.nan, owners) == (pytest.approx(np.nan, nan_ok=True),) * 2


def skewed(rng: np.random.Generator, proteins: int, classes: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Draw proteins of few common and many rare classes, the common ones predicted better; and the shares."""
    shares = 1 / np.arange(1, classes + 1)
    recall = np.linspace(0.8, 0.05, classes)
    target = rng.choice(classes, proteins, p=shares / shares.sum())
    other = rng.choice(classes, proteins, p=shares / shares.sum())
    return np.stack((target, np.where(rng.random(proteins) < recall[target], target, other))), shares / shares.sum()


MACRO = [metrics.macro_accuracy, metrics.macro_f1]


@pytest.mark.parametrize("metric", MACRO)
@pytest.mark.parametrize("classes", [4, 30, 150])
def test_a_figure_lies_in_its_interval_where_classes_are_rare(metric: metrics.Metric, classes: int) -> None:
    places = []
    for seed in range(5):
        (target, predicted), _ = skewed(np.random.default_rng(seed), 300, classes)
        figure = lambda rows: metric(target[rows], predicted[rows])  # noqa: B023, E731
        low, high = bootstrap_interval(figure, np.arange(300), draws=200, seed=seed)
        value = metric(target, predicted)
        assert 0 <= low <= value <= high <= 1
        places.append((value - low) / (high - low))
    assert 0.4 < np.mean(places) < 0.6, "neither end is the figure"


@pytest.mark.parametrize(("proteins", "classes"), [(300, 10), (600, 150)])
def test_intervals_of_macro_figures_cover_the_truth_about_as_often_as_they_say(proteins: int, classes: int) -> None:
    rng, hits = np.random.default_rng(1), []
    recall = np.linspace(0.8, 0.05, classes)
    for seed in range(100):
        (target, predicted), shares = skewed(rng, proteins, classes)
        truth = float(np.mean((recall + (1 - recall) * shares)[np.unique(target)]))
        figure = lambda rows: metrics.macro_accuracy(target[rows], predicted[rows])  # noqa: B023, E731
        low, high = bootstrap_interval(figure, np.arange(proteins), draws=100, seed=seed)
        hits.append(low <= truth <= high)
    assert 0.85 <= np.mean(hits) <= 0.99


def test_intervals_of_residues_cover_the_truth_about_as_often_as_they_say() -> None:
    """Proteins differ in quality, and a rare class lives in few of them."""
    rng, hits = np.random.default_rng(2), []

    def draw(proteins: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        sizes = rng.integers(20, 80, proteins)
        rare, quality = rng.random(proteins) < 0.1, rng.beta(4, 2, proteins)
        owners = np.repeat(np.arange(proteins), sizes)
        target = np.where(rare[owners] & (rng.random(len(owners)) < 0.5), 2, rng.integers(0, 2, len(owners)))
        right = rng.random(len(owners)) < quality[owners] * np.where(target == 2, 0.6, 1)
        return owners, target, np.where(right, target, (target + 1) % 3)

    _, *everything = draw(20_000)
    truth = metrics.macro_f1(*everything)
    for seed in range(100):
        owners, target, predicted = draw(80)
        figure = lambda rows: metrics.macro_f1(target[rows], predicted[rows])  # noqa: B023, E731
        low, high = bootstrap_interval(figure, owners, draws=100, seed=seed)
        hits.append(low <= truth <= high)
    assert 0.85 <= np.mean(hits) <= 0.99


def test_equal_sequences_are_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(60) < 0.7).astype(float)
    mean = lambda rows: float(np.tile(right, 4)[rows].mean())  # noqa: E731
    sequences = [f"M{number}" for number in range(60)] * 4
    once = bootstrap_interval(lambda rows: float(right[rows].mean()), np.arange(60))
    assert bootstrap_interval(mean, metrics.same_proteins(sequences)) == pytest.approx(once)
    apart = bootstrap_interval(mean, np.arange(240))
    assert apart[1] - apart[0] < 0.6 * (once[1] - once[0])


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
def test_an_interval_stays_in_the_range_of_its_figure(values: list[float]) -> None:
    found = bootstrap_interval(lambda rows: float(np.array(values)[rows].mean()), np.arange(len(values)))
    if len(values) < 2:
        assert np.isnan(found).all(), "one protein shows no spread"
        return
    assert min(values) <= found[0] <= np.mean(values) <= found[1] <= 1


@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.macro_accuracy, metrics.macro_f1, metrics.mcc, metrics.spearman, metrics.rmse]
)
def test_nothing_counted_is_nan(metric: metrics.Metric) -> None:
    assert np.isnan(metric(np.empty(0, dtype=int), np.empty(0, dtype=int)))


@pytest.mark.skipif(not RECORDED.is_file(), reason="no reference data; PROTEMBED_REFERENCE names its folder")
def test_metrics_equal_those_of_tape() -> None:
    with np.load(RECORDED) as arrays:
        close = partial(pytest.approx, abs=1e-6)
        for name in ("contact_batch", "contact_single", "contact_mostly_masked"):
            sizes = arrays[f"{name}.lengths"]
            odds = arrays[f"{name}.prediction"]
            scores = 1 / (1 + np.exp(odds[..., 0].astype(float) - odds[..., 1]))
            maps = [m[:n, :n] for m, n in zip(scores, sizes, strict=True)]
            labels = [m[:n, :n] for m, n in zip(arrays[f"{name}.labels"], sizes, strict=True)]
            assert tape_precision(maps, labels) == close(float(arrays[f"{name}.precision_at_l5"]))
            for m, label, expected in zip(maps, labels, arrays[f"{name}.precision_per_protein"], strict=True):
                assert tape_precision([m], [label]) == close(float(expected))
                right, chosen = top_contacts(m, label == 1, label != -1, top=len(m) // 5)
                assert right / chosen == close(float(expected))  # there are always enough pairs that count
        pairs = [(arrays[f"accuracy_residues.target{i}"], arrays[f"accuracy_residues.scores{i}"]) for i in range(3)]
        target = np.concatenate([t for t, _ in pairs])
        predicted = np.concatenate([s.argmax(axis=1) for _, s in pairs])
        value = metrics.accuracy(target[target >= 0], predicted[target >= 0])
        assert value == close(float(arrays["accuracy_residues"]))
        value = metrics.accuracy(arrays["accuracy_class.target"], arrays["accuracy_class.scores"].argmax(axis=1))
        assert value == close(float(arrays["accuracy_class"]))
        for name in ("spearman", "spearman_ties"):
            value = metrics.spearman(arrays[f"{name}.target"], arrays[f"{name}.prediction"])
            assert value == close(float(arrays[name]))
        for name in ("", "_ties"):
            columns = arrays[f"spearman{name}.target"], arrays[f"spearman{name}.prediction"]
            assert metrics.rmse(*columns) ** 2 == close(float(arrays[f"mse{name}"]))


def test_temperature_is_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    odds = np.exp(logits / 1.7)
    target = (rng.random((20_000, 1)) > np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)).sum(axis=1)
    assert fit_temperature(logits, target) == pytest.approx(1.7, rel=0.03)
    flags = rng.random((20_000, 4)) < 1 / (1 + np.exp(-logits / 0.6))
    assert fit_temperature(logits, flags) == pytest.approx(0.6, rel=0.03)
