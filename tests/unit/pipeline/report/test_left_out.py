"""What the page says of test images among the pre-training's, by the lists that its job keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.exclusions import write_exclusions
from pipeline.report.build import build
from pipeline.report.left_out import left_out_lines, read_left_out
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run


@pytest.fixture
def made(tmp_path: Path) -> SyntheticRun:
    return write_synthetic_run(synthetic_config(tmp_path))


def test_without_a_list_the_page_says_that_nobody_searched(made: SyntheticRun) -> None:
    assert read_left_out(made.run, made.digests["pretrain"]) == []
    assert list(left_out_lines([], {"digits": "a", "count": "b"})) == [
        "Near-duplicates between the pre-training images and the test splits were not searched for."
    ]


def test_a_list_is_shown_with_what_was_searched(made: SyntheticRun) -> None:
    digits = made.run.job(made.digests["prepare/digits"]).read_result()
    assert digits is not None
    searched = {
        "with": "digits",
        "fingerprint": digits["outputs"]["fingerprints"]["test"],
        "samples": 9,
        "pairs": 3,
        "exact": 1,
    }
    path = made.run.job(made.digests["pretrain"]).path / "exclude-glyphs.json"
    write_exclusions(path, "f" * 64, np.array([4, 8]), "why", [searched])
    page = build(made.run, made.config.model_dump(mode="json"), made.digests).html.read_text()
    assert "Left out of pre-training: 2 images of glyphs." in page
    assert "Near-duplicates of test images: digits 3 pairs (1 of the same bytes)." in page
    assert "and the test splits of count were not searched for." in page


def test_all_searched_and_nothing_found(tmp_path: Path, made: SyntheticRun) -> None:
    compared = [
        {"with": name, "fingerprint": name * 2, "samples": 1, "pairs": 0, "exact": 0} for name in ("a", "b")
    ]
    path = made.run.job(made.digests["pretrain"]).path / "exclude-glyphs.json"
    write_exclusions(path, "f" * 64, np.array([], dtype=np.int64), "why", compared)
    found = read_left_out(made.run, made.digests["pretrain"])
    assert list(left_out_lines(found, {"a": "aa", "b": "bb"})) == [
        "Left out of pre-training: 0 images of glyphs. Near-duplicates of test images: a none, b none."
    ]
    assert read_left_out(made.run, None) == []
