"""The tables under the pictures, from numbers that one can check by hand."""

from __future__ import annotations

import numpy as np

from pipeline.report.insight import Insight
from pipeline.report.insight_sheets import distance_sheet, filters_sheet, positions_sheet, rollout_sheet


def test_the_tables_say_what_the_pictures_show() -> None:
    table = np.eye(4).reshape(2, 2, 2, 2) + 0.5 * (1 - np.eye(4)).reshape(2, 2, 2, 2)
    table[0, 0, 0, 1] = table[0, 1, 0, 0] = 0.9
    numbers = {
        "rollout": {"images": [{"image": "a\u202e", "shares": [[0.1, 0.2], [0.3, 0.4]], "half_on": 2}]},
        "filters": {"shares": [0.5, 0.2, 0.1]},
        "positions": {"similarity": table.tolist()},
        "distance": {"pixels": [[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], "even": 5.25, "images": 3},
    }
    insight = Insight({}, numbers, {})
    assert [list(line.cells) for line in rollout_sheet(insight).rows] == [["a", "2", "4"]]
    assert [list(line.cells) for line in filters_sheet(insight).rows] == [
        ["1", "50.0 %"],
        ["2", "70.0 %"],
        ["3", "80.0 %"],
    ]
    assert [list(line.cells) for line in distance_sheet(insight).rows] == [
        ["1", "1.0", "3.0", "6.0"],
        ["2", "4.0", "4.0", "4.0"],
        ["even", "", "5.2", ""],
    ]
    assert [list(line.cells) for line in positions_sheet(insight).rows] == [
        ["next to each other in a row", "0.70"],
        ["next to each other in a column", "0.50"],
        ["neither row nor column", "0.50"],
    ]
