"""Numbers and verdicts as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.report import words
from pipeline.transfer.cells import Cost
from pipeline.transfer.results import compare
from pipeline.transfer.statistics import Interval
from tests.helpers.cells import two_sides


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (words.signed(1.25), "+1.2"),
        (words.signed(-0.04), "0.0"),
        (words.signed(-3.96, 2), "−3.96"),
        (words.percent(0.8716), "87.2 %"),
        (words.bounds(Interval(-1.2, 3.4)), "−1.2 to 3.4"),
        (words.bounds(None), "–"),
        (words.p_value(1e-9), "p < 0.0001"),
        (words.p_value(0.01234), "p = 0.012"),
        (words.p_value(0.4567), "p = 0.46"),
        (words.p_value(None), "–"),
        (words.count(12345.0), "12\u202f345"),
        (words.quantity(38400, "images"), "38.4 k images"),
        (words.quantity(3, "images"), "3 images"),
        (words.exaflops(1.5), "1.5 exaFLOP"),
        (words.exaflops(2.3e-6), "2.3 teraFLOP"),
        (words.exaflops(0), "–"),
        (words.duration(5), "5.0 s"),
        (words.duration(125), "2 min 05 s"),
        (words.duration(7260), "2 h 01 min"),
        (words.clean_end("photos/test/airplanes/image_0021.jpg", 16), "…/image_0021.jpg"),
        (words.clean_end("short.jpg", 16), "short.jpg"),
    ],
)
def test_numbers(found: str, expected: str) -> None:
    assert found == expected


def test_names_of_others_stay_on_their_line() -> None:
    assert words.clean("a\nb\tc\x00d\u202egnp\u200b.exe\ud800") == "a b cdgnp.exe"
    assert words.clean("x" * 100) == "x" * 47 + "…"
    assert words.clean("Katze 猫 🐈") == "Katze 猫 🐈"


def test_a_verdict_says_what_it_rests_on() -> None:
    (sentence,) = words.verdicts(compare(two_sides(40, 10, 120, 30)))
    assert sentence.startswith("pretrained is better than scratch on digits by 15.0 pp (95 % CI ")
    assert sentence.endswith("n 200, McNemar, exact p < 0.0001, 1 seed).")


def test_a_verdict_names_the_price_and_the_other_tests() -> None:
    cells = [*two_sides(12, 10, 150, 28), *two_sides(10, 40, 120, 30, dataset="count")]
    cells[0] = replace(cells[0], cost={"pretrain": Cost(images=500, exaflops=4e-6)})
    first, second = words.verdicts(compare(cells))
    assert first.startswith("No difference shown between pretrained and scratch on digits: +1.0 pp (")
    assert first.endswith("Holm over 2 comparisons, 1 seed), at 4 × the training compute.")
    assert "pretrained is worse than scratch on count by 15.0 pp" in second


def test_equivalence_and_refusal_in_words() -> None:
    close = compare(two_sides(40, 40, 9000, 920), margin_pp=0.5)
    assert "are equivalent on digits within 0.5 pp: 0.0 pp" in words.verdicts(close)[0]
    first, second = two_sides(40, 10, 120, 30)
    forced = compare([first, replace(second, test_fingerprint="e" * 64)], force=True)
    assert "cannot be compared on digits: test splits differ" in words.verdicts(forced)[0]


def test_the_tally_of_many_datasets() -> None:
    cells = [cell for name in "abc" for cell in two_sides(40, 10, 120, 30, dataset=name)]
    cells += two_sides(12, 10, 150, 28, dataset="d")
    (line,) = words.tally(compare(cells))
    assert line == "pretrained against scratch on 4 datasets: better on 3, no difference shown on 1."
    assert words.tally(compare(two_sides(40, 10, 120, 30))) == []
