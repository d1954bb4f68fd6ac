from vitreous.tables import class_rows, confusion_rows, figure_rows, table


def test_columns_of_numbers_stand_to_the_right():
    assert table([("class", "images"), ("a", "5"), ("bb", "1,200")]) == "class  images\na           5\nbb      1,200"
    assert table([("torch", "2.15.0"), ("os", "Linux")]) == "torch  2.15.0\nos     Linux"
    assert table([("a\nb", "1")]) == "a\\nb  1"


def figures() -> dict:
    rows = [("cat", 2), ("dog", 1), ("cow", 0)]
    return {
        "split": "test",
        "num_images": 3,
        "top1": {"value": 1 / 3, "low": 0.0615, "high": 0.7923},
        "top5": None,
        "macro_f1": 0.25,
        "ece": 0.1,
        "per_class": [{"name": n, "count": c, "precision": 0.5, "recall": 0.5, "f1": 0.5} for n, c in rows],
        "confusion": [[1, 0, 1], [1, 0, 0], [0, 0, 0]],
    }


def test_headlines_hold_the_interval_and_what_was_measured():
    rows = figure_rows(figures())
    assert rows[0] == ("top-1", "33.33%", "95 % interval 6.15% to 79.23%")
    assert rows[-1] == ("images", "3", "test")
    assert not [row for row in rows if row[0] == "top-5"]


def test_only_classes_that_occur_have_a_row():
    assert [row[0] for row in class_rows(figures())] == ["cat", "dog"]


def test_confusions_are_named_true_class_first():
    assert confusion_rows(figures()) == [("dog", "cat", "1"), ("cat", "cow", "1")]
    assert confusion_rows(figures(), most=1) == [("dog", "cat", "1")]
