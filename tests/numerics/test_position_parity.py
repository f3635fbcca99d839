"""Resizing of position tables: each library's own function gives what our rule of its name gives."""

import timm
import torch
import torchvision
import transformers
from torch import Tensor

from model.positions import resize_positions
from model.weights.exchange import LAYOUTS

OLD, NEW, WIDTH = 4, 7, 12


def table() -> Tensor:
    return torch.randn(1, 1 + OLD * OLD, WIDTH, generator=torch.Generator().manual_seed(0))


def ours(rule: str, new: tuple[int, int] = (NEW, NEW)) -> Tensor:
    return resize_positions(table(), (OLD, OLD), new, has_class_token=True, rule=rule)


def test_timm_reading_its_own_files() -> None:
    rule = LAYOUTS["timm"].RESIZE_RULE
    for new in ((NEW, NEW), (3, 5)):
        theirs = timm.layers.resample_abs_pos_embed(table(), list(new), [OLD, OLD], num_prefix_tokens=1)
        torch.testing.assert_close(ours(rule, new), theirs)


def test_timm_reading_npz() -> None:
    theirs = timm.layers.resample_abs_pos_embed(
        table(), [NEW, NEW], [OLD, OLD], num_prefix_tokens=1, interpolation="bilinear", antialias=False
    )
    torch.testing.assert_close(ours("bilinear"), theirs)


def test_torchvision() -> None:
    state = {"encoder.pos_embedding": table()}
    theirs = torchvision.models.vision_transformer.interpolate_embeddings(8 * NEW, 8, state)
    torch.testing.assert_close(ours(LAYOUTS["torchvision"].RESIZE_RULE), theirs["encoder.pos_embedding"])


def test_hugging_face() -> None:
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_attention_heads=2, image_size=8 * OLD, patch_size=8
    )
    embeddings = transformers.models.vit.modeling_vit.ViTEmbeddings(config)
    embeddings.position_embeddings.data = table()
    tokens = torch.zeros(1, 1 + NEW * NEW, WIDTH)
    theirs = embeddings.interpolate_pos_encoding(tokens, 8 * NEW, 8 * NEW)
    torch.testing.assert_close(ours(LAYOUTS["huggingface"].RESIZE_RULE), theirs.detach())
