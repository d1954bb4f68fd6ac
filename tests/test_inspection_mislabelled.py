"""Labels that are probably wrong."""

import numpy as np

from vitreous.inspection.mislabelled import Prediction, likely_mislabelled


def by_formula(probabilities: np.ndarray, labels: np.ndarray) -> list[int]:
    """Confident learning with the whole matrix, image by image."""
    found = []
    for i, row in enumerate(probabilities):
        label, best = labels[i], row.argmax()
        own = np.mean([probabilities[k, label] for k in range(len(labels)) if labels[k] == label])
        others = [probabilities[k, best] for k in range(len(labels)) if labels[k] == best]
        if best != label and row[label] < own and others and row[best] >= np.mean(others):
            found.append(i)
    return sorted(found, key=lambda i: probabilities[i, labels[i]] - probabilities[i].max())


def test_likely_mislabelled_equals_the_formula_on_each_split():
    rng = np.random.default_rng(0)
    predictions, expected = [], []
    for split, count in (("test", 200), ("train", 300)):
        labels = rng.integers(0, 5, count)
        logits = rng.normal(size=(count, 5))
        logits[np.arange(count), labels] += 3
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        wrong = rng.random(count) < 0.1
        labels[wrong] = rng.integers(0, 5, wrong.sum())
        for i, (row, label) in enumerate(zip(probabilities, labels)):
            best = row.argmax()
            predictions.append(Prediction(split, i, f"{i}", str(label), str(best), row[best], row[label]))
        expected.append([(split, i) for i in by_formula(probabilities, labels)])
    ours = [(p.split, p.index) for p in likely_mislabelled(predictions)]
    assert [pair for pair in ours if pair[0] == "test"] == expected[0]
    assert [pair for pair in ours if pair[0] == "train"] == expected[1]
    assert 10 < len(ours) < 100


def test_a_class_that_no_image_is_labelled_with_has_no_threshold_to_reach():
    alone = Prediction("test", 0, "a", "cat", "dog", confidence=0.99, label_probability=0.01)
    sure = Prediction("test", 1, "b", "cat", "cat", confidence=0.9, label_probability=0.9)
    assert likely_mislabelled([alone, sure]) == []
