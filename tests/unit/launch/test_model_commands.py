"""`vitline model …` on real, tiny models: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from launch.model_commands import model_app
from model.config import ModelConfig
from model.weights.exchange import LAYOUTS
from model.weights.files import load_weights, save_weights
from model.zoo import build, model_config
from pipeline.errors import DataError, UserError

SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
PHOTOS = sorted((Path(__file__).resolve().parents[2] / "data/photos/test").rglob("*.jpg"))[::40]
HEADER = {
    "step": "300",
    "classes": json.dumps(["cat", "dog", "owl", "emu", "fox"]),
    "preprocessing": json.dumps({"image_size": 32, "evaluate": "resize", "larger": 1.25, "scale": "x"}),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(model_app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> str:
    """Stdout of a command that works."""
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(*arguments: object) -> str:
    """The message of a command that refuses."""
    error = run(*arguments).exception
    assert isinstance(error, UserError), error
    return str(error)


def small(name: str = "vit_ti8", **options: object) -> ModelConfig:
    size = {"blocks": (1,)} if name.startswith("bit") else SMALL
    options = {"num_classes": 5, "image_size": 32, **size, **options}
    return model_config(name, **options)  # type: ignore[arg-type]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "weights.safetensors", small())


def write(path: Path, config: ModelConfig, header: dict[str, str] | None = None) -> Path:
    state = build(config, torch.Generator().manual_seed(0)).state_dict()
    save_weights(path, state, config.to_dict(), HEADER if header is None else header)
    return path


# ---------------------------------------------------------------- list and show


def test_help_needs_no_pytorch() -> None:
    program = "import sys, launch.model_commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_list_gives_parameters_and_cost() -> None:
    rows = json.loads(printed("list", "--json", "vit_ti"))["models"]
    assert [row["name"] for row in rows] == ["vit_ti4", "vit_ti8", "vit_ti16", "vit_ti32", "r_vit_ti16"]
    # paper-spec, section 1.2
    assert rows[2]["parameters"] == 5_717_416
    assert rows[2]["macs"] == pytest.approx(1.25e9, rel=0.01)
    text = printed("list", "r50_*l16")
    assert "r50_vit_l16" in text
    assert "hybrid of the paper: a ResNet, then Large" in text
    assert "r50_vit_b16" not in text


def test_unknown_names_have_a_nearest() -> None:
    assert "unknown model 'vit_z16'; did you mean" in refused("list", "vit_z16")
    assert "unknown model 'vitb16'; did you mean 'vit_b16'" in refused("show", "vitb16")
    assert "did you mean 'depth'" in refused("show", "vit_b16", "depht=3")


def test_show_counts_at_the_size_that_is_asked_for() -> None:
    facts = json.loads(printed("show", "vit_ti16", "--image-size", "384", "--json"))
    assert facts["parameters"] == 5_790_376  # paper-spec, section 1.2
    assert facts["macs"] == pytest.approx(4.68e9, rel=0.01)
    assert facts["tokens"] == {"all": 577, "grid": [24, 24], "patch_pixels": [16, 16], "class_token": True}
    wide = json.loads(printed("show", "vit_ti16", "pool=gap", "--image-size", "32x48", "--json"))
    assert (wide["tokens"]["all"], wide["tokens"]["grid"]) == (6, [2, 3])
    assert json.loads(printed("show", "bit_r50x1", "--json"))["tokens"] is None
    text = printed("show", "vit_ti16", "--num-classes", "10")
    assert "5,526,346, 1,930 of them in the head" in text
    assert "197: a grid of 14x14 patches of 16x16 px, the class token first" in text
    assert "stem_norm_eps" not in text


def test_show_tells_what_a_file_holds(weights: Path) -> None:
    facts = json.loads(printed("show", weights, "--json"))
    assert facts["file"]["metadata"]["classes"] == ["cat", "dog", "owl", "emu", "fox"]
    assert facts["file"]["dtypes"] == ["float32"]
    assert facts["config"]["width"] == 48
    assert json.loads(printed("show", weights.parent, "--json")) == {
        **facts,
        "file": {**facts["file"], "path": str(weights)},
    }
    larger = json.loads(printed("show", weights, "--image-size", "64", "--num-classes", "7", "--json"))
    assert (larger["tokens"]["all"], larger["config"]["num_classes"]) == (65, 7)
    text = printed("show", weights)
    assert "cat, dog, owl, emu, fox" in text
    assert "32 tensors, float32" in text


def test_sizes_and_options_that_mean_nothing() -> None:
    for size in ("0", "x", "32x", "1x2x3", "-4", "32.5"):
        assert "expected pixels as 224" in refused("show", "vit_b16", f"--image-size={size}")
    assert "is not divisible by its patch" in refused("show", "vit_b16", "--image-size", "100")
    assert "OPTION=VALUE" in refused("show", "vit_b16", "heads")
    assert "a number or a word" in refused("show", "vit_b16", "heads=[")


def test_show_refuses_files_that_are_not_weights(weights: Path, tmp_path: Path) -> None:
    assert "width beside a file" in refused("show", weights, "width=3")
    assert f"no weight file at {tmp_path / 'no.safetensors'}" in refused("show", tmp_path / "no.safetensors")
    foreign = tmp_path / "w.npz"
    foreign.touch()
    assert "`vitline model import`" in refused("show", foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    assert "is not a whole safetensors file" in refused("show", cut)
    other = small(width=96)
    save_weights(cut, build(small()).state_dict(), other.to_dict())
    assert "of the wrong shape" in refused("show", cut)


# ---------------------------------------------------------------- import and export


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_survives_the_round_trip(layout: str, weights: Path, tmp_path: Path) -> None:
    foreign = tmp_path / layout / ("theirs.npz" if layout == "npz" else "theirs.safetensors")
    back = tmp_path / "new" / "back.safetensors"
    assert f"model 'vit_ti8' in {layout} layout" in printed("export", weights, foreign, "--layout", layout)
    found = json.loads(printed("import", foreign, "heads=3", "--to", back, "--json"))
    assert (found["layout"], found["config"]["num_classes"]) == (layout, 5)
    assert found["config"]["image_size"] == [32, 32]
    before, after = load_weights(weights)[0], load_weights(back)
    assert after[2] == {"source": foreign.name, "layout": layout}
    assert before.keys() == after[0].keys()
    assert all(torch.equal(before[key], after[0][key]) for key in before)
    expected = {foreign.name, "config.json"} if layout == "huggingface" else {foreign.name}
    assert {path.name for path in foreign.parent.iterdir()} == expected
    if layout == "huggingface":
        assert json.loads((foreign.parent / "config.json").read_text())["num_attention_heads"] == 3


def test_import_says_what_it_found_and_assumed(tmp_path: Path) -> None:
    config = model_config("vit_ti16", num_classes=3, image_size=32)
    ours = write(tmp_path / "ours.safetensors", config)
    foreign, back = tmp_path / "theirs.pth", tmp_path / "back.safetensors"
    printed("export", ours, foreign, "--layout", "timm")
    result = run("import", foreign, "--to", back)
    assert "model 'vit_ti16' from" in result.stdout
    assert "32x32 px, 3 classes" in result.stdout
    assert "note: images are scaled to [-1, 1] here" in result.stderr
    assert load_weights(back)[1]["gelu"] == "erf"
    printed("import", foreign, "gelu=tanh", "--to", back)
    assert load_weights(back)[1]["gelu"] == "tanh"


def test_import_refuses_in_one_message(weights: Path, tmp_path: Path) -> None:
    foreign, to = tmp_path / "theirs.safetensors", tmp_path / "out.safetensors"
    printed("export", weights, foreign, "--layout", "timm")
    assert "which is no published size" in refused("import", foreign, "--to", to)
    assert "heads=3" in refused("import", foreign, "--to", to)
    assert "did you mean 'timm'" in refused("import", foreign, "--to", to, "--layout", "tim")
    assert "of the wrong shape" in refused("import", foreign, "--to", to, "--name", "vit_ti8")
    assert "did you mean 'gelu'" in refused("import", foreign, "heads=3", "geluu=erf", "--to", to)
    assert "does not end in .safetensors" in refused("import", foreign, "--to", tmp_path / "out.npz")
    assert "would replace the file it is made from" in refused("import", foreign, "heads=3", "--to", foreign)
    assert "no weight file at" in refused("import", tmp_path / "none.npz", "--to", to)
    assert "none of the layouts" in refused("import", weights, "--to", to)
    assert not to.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "name", ["noise.npz", "noise.pth", "cut.npz", "cut.pth", "empty.npz", "empty.pth", "a.txt"]
)
def test_damaged_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", bytes(3000))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:1500], "noise": b"\x01\x02noise" * 300}.get(path.stem, b""))
    message = refused("import", path, "--to", tmp_path / "out.safetensors")
    assert name in message
    assert "do this: name such a file" in message


def test_export_refuses_in_one_message(weights: Path, tmp_path: Path) -> None:
    assert "would replace the file it is made from" in refused("export", weights, weights, "--layout", "timm")
    assert "a.pth does not end in .npz" in refused("export", weights, tmp_path / "a.pth", "--layout", "npz")
    assert "did you mean 'torchvision'" in refused("export", weights, tmp_path / "a.pth", "--layout", "torch")
    bit = write(tmp_path / "bit.safetensors", small("bit_r26x1"))
    assert "has no BiT ResNets" in refused("export", bit, tmp_path / "b.pth", "--layout", "torchvision")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bit.safetensors", "weights.safetensors"]


# ---------------------------------------------------------------- inspect


def test_inspect_writes_four_pictures_and_their_numbers(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "insight"
    text = printed("inspect", weights, *PHOTOS, "--out", out)
    pictures = ["rollout", "filters", "positions", "distance"]
    assert text.split() == [str(out / f"{name}.png") for name in pictures] + [str(out / "insight.json")]
    for name in pictures:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((out / "insight.json").read_text())
    assert [row["image"] for row in numbers["rollout"]["images"]] == [str(path) for path in PHOTOS]
    assert numbers["distance"]["images"] == len(PHOTOS)
    assert numbers["model"]["width"] == 48
    assert numbers["left_out"] == {}


@pytest.mark.parametrize("evaluate", ["resize", "centre"])
def test_inspect_shows_oblong_models_oblong_images(tmp_path: Path, evaluate: str) -> None:
    config = small(image_size=(32, 48))
    model = build(config, torch.Generator().manual_seed(0))
    prepared = {"image_size": 32, "evaluate": evaluate, "larger": 1.25, "scale": "x"}
    path = tmp_path / "w.safetensors"
    save_weights(path, model.state_dict(), config.to_dict(), {"preprocessing": json.dumps(prepared)})
    printed("inspect", path, *PHOTOS[:2], "--out", tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "insight.json").read_text())
    shares = torch.tensor(numbers["rollout"]["images"][0]["shares"])
    assert shares.shape == (4, 6)


def test_inspect_skips_what_a_model_does_not_have_and_says_so(tmp_path: Path) -> None:
    weights = write(tmp_path / "w.safetensors", small(stem=(), patch=2, positions="none"), {})
    result = run("inspect", weights, PHOTOS[0], "--out", tmp_path / "out", "--json")
    found = json.loads(result.stdout)
    assert [Path(file).name for file in found["files"]] == ["rollout.png", "distance.png", "insight.json"]
    assert "adds no positions" in found["left_out"]["positions"]
    assert "note: no filters.png: model 'vit_ti8' embeds a stem's output" in result.stderr
    assert "note: the file does not say how images were prepared" in result.stderr
    bit = write(tmp_path / "bit.safetensors", small("bit_r26x1"))
    assert "is a ResNet: no attention" in refused("inspect", bit, PHOTOS[0], "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_inspect_names_files_that_cannot_be_used(weights: Path, tmp_path: Path) -> None:
    assert "no weight file at" in refused(
        "inspect", tmp_path / "no.safetensors", PHOTOS[0], "--out", tmp_path
    )
    missing = tmp_path / "none.jpg"
    assert f"{missing}: No such file" in refused("inspect", weights, missing, "--out", tmp_path)
    assert "Is a directory" in refused("inspect", weights, PHOTOS[0].parent, "--out", tmp_path)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(PHOTOS[0].read_bytes()[:400])
    error = run("inspect", weights, PHOTOS[0], bad, "--out", tmp_path / "out").exception
    assert isinstance(error, DataError)
    assert "bad.jpg cannot be decoded" in str(error)
    file = tmp_path / "file"
    file.touch()
    assert "File exists" in refused("inspect", weights, PHOTOS[0], "--out", file)
