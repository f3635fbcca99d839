from __future__ import annotations

from launch.data_text import histogram, left_out


def test_of_many_classes_the_largest_and_the_smallest_are_drawn() -> None:
    counts = [1000 - 9 * number for number in range(100)]
    lines = list(histogram([f"class {number}" for number in range(100)], counts))
    assert lines[0] == "samples per class: 109 to 1000"
    assert lines[1] == f"  class 0   1000  {'█' * 40}"
    assert lines[21] == "  … 60 classes between them"
    assert lines[-1] == f"  class 99   109  {'█' * 4}"
    assert len(lines) == 42


def test_a_class_without_samples_has_no_bar() -> None:
    assert list(histogram(["a", "b"], [0, 4]))[1] == "  a  0"


def test_of_many_faults_the_first_are_listed() -> None:
    lines = list(left_out([{"key": f"{number}.tar", "reason": "is cut off"} for number in range(25)]))
    assert lines[0] == "left out: 25"
    assert lines[20:] == ["  19.tar: is cut off", "  and 5 more"]
