"""Compares our count of operations with the exaFLOPs that the paper prints in its Table 6.

    python -m launch.bench.table6

Prints a Markdown table: multiply-accumulates of one image of 224 pixels, what they predict for the paper's
run on 303 million images, and the deviation from the printed value; once with all taps of a convolution and
once without those that fall on padding. Nothing is trained, nothing is allocated.
"""

from dataclasses import dataclass

from model.flops import FLOPS_PER_MAC, FORWARD_AND_BACKWARD, macs
from model.zoo import model_config

IMAGES = 303e6  # of JFT-300M, as the paper counts it (Section 4.1)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the paper's Table 6 (arXiv 2010.11929v2)."""

    label: str
    name: str  # in our zoo
    epochs: int
    printed: int  # exaFLOPs


ROWS = (
    Row("ViT-B/32", "vit_b32", 7, 55),
    Row("ViT-B/16", "vit_b16", 7, 224),
    Row("ViT-L/32", "vit_l32", 7, 196),
    Row("ViT-L/16", "vit_l16", 7, 783),
    Row("ViT-L/16", "vit_l16", 14, 1567),
    Row("ViT-H/14", "vit_h14", 14, 4262),
    Row("ResNet50x1", "bit_r50x1", 7, 50),
    Row("ResNet50x2", "bit_r50x2", 7, 199),
    Row("ResNet101x1", "bit_r101x1", 7, 96),
    Row("ResNet152x1", "bit_r152x1", 7, 141),
    Row("ResNet152x2", "bit_r152x2", 7, 563),
    Row("ResNet152x2", "bit_r152x2", 14, 1126),
    Row("ResNet200x3", "bit_r200x3", 14, 3306),
    Row("R50+ViT-B/32", "r50_vit_b32", 7, 106),
    Row("R50+ViT-B/16", "r50_vit_b16", 7, 274),
    Row("R50+ViT-L/32", "r50_vit_l32", 7, 246),
    Row("R50+ViT-L/16", "r50_vit_l16", 7, 859),
    Row("R50+ViT-L/16", "r50_vit_l16", 14, 1668),
)


def predicted(row: Row, *, padding_counts: bool = True) -> float:
    """ExaFLOPs of a row's training run by our count."""
    config = model_config(row.name, num_classes=1000)
    operations = FLOPS_PER_MAC * FORWARD_AND_BACKWARD * macs(config, padding_counts=padding_counts)
    return operations * IMAGES * row.epochs / 1e18


def line(row: Row) -> str:
    """A row of the Markdown table."""
    whole, without = predicted(row), predicted(row, padding_counts=False)
    giga_macs = macs(model_config(row.name, num_classes=1000)) / 1e9
    other = "" if whole == without else f"{without:.1f} ({without / row.printed - 1:+.1%})"
    off = f"{whole / row.printed - 1:+.2%}"
    return f"| {row.label}, {row.epochs} | {row.printed} | {giga_macs:.3f} | {whole:.1f} | {off} | {other} |"


def main() -> None:
    """Prints the table."""
    print("| Model, epochs | printed | GMACs | predicted | deviation | without taps on padding |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        print(line(row))


if __name__ == "__main__":
    main()
