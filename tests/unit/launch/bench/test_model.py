"""The model benchmark: it runs every contender, in turn, and its ratios are those of the same round."""

from pathlib import Path

import pytest

from launch.bench.model import Times, main, ratios, table


def test_ratios_are_taken_round_by_round() -> None:
    times = {
        "ours": Times([2.0, 9.0], [1.0, 1.0], 5_000_000),
        "timm": Times([1.0, 10.0], [2.0, 2.0], 6_000_000),
        "torchvision": Times([4.0, 3.0], [1.0, 1.0], 7_000_000),
    }
    assert ratios(times, "wall_s", "timm", "ours") == [2.0, 0.9]
    row = table(times)[0]
    assert (row["model"], row["processor/timm"], row["wall/torchvision"]) == ("ours", "0.500", "1.750")
    assert row["memory_MB"] == "5"


def test_a_small_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.csv"
    main(["--model", "vit_ti32", "--batch", "1", "--rounds", "1", "--threads", "1", "--csv", str(path)])
    lines = path.read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["ours", "ours-erf", "timm", "torchvision"]
    memory = {line.split(",")[0]: int(line.split(",")[-1]) for line in lines[1:]}
    assert memory["ours"] <= memory["timm"]
    assert "vit_ti32" in capsys.readouterr().out


def test_hybrids_have_no_counterpart() -> None:
    with pytest.raises(ValueError, match="r26_vit_s32 has no counterpart in both peers"):
        main(["--model", "r26_vit_s32"])
