"""The Vision Transformer: a second, plain implementation agrees, and its switches do what they say."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import create_model
from model.vit import ViT, drop_branch, relative_logits

SMALL = {"width": 32, "depth": 2, "heads": 4, "mlp": 48}
VARIANTS: dict[str, dict[str, object]] = {
    "token": {},
    "gap": {"pool": "gap"},
    "map": {"pool": "map"},
    "none": {"positions": "none"},
    "learned2d": {"positions": "learned2d"},
    "sincos2d": {"positions": "sincos2d", "pool": "gap"},
    "sincos2d-token": {"positions": "sincos2d"},
    "layers": {"positions_at": "layers"},
    "layers-2d": {"positions": "learned2d", "positions_at": "layers"},
    "layers-shared": {"positions_at": "layers_shared"},
    "relative": {"positions": "relative"},
    "relative-shared": {"positions": "relative", "positions_at": "layers_shared"},
    "qk-norm": {"qk_norm": True},
    "hidden": {"representation": True},
    "erf": {"gelu": "erf"},
    "root": {"stem": (), "patch": 2},
}


def small(image_size: tuple[int, int] = (16, 24), **options: object) -> ViT:
    model = create_model("vit_ti8", num_classes=5, image_size=image_size, **{**SMALL, **options})  # type: ignore[arg-type]
    assert isinstance(model, ViT)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images(batch: int = 3, size: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def by_the_equations(model: ViT, x: Tensor) -> Tensor:
    """Equations 1 to 4 of the paper, one image and one head at a time, from the model's state."""
    state, config = model.state_dict(), model.config
    rows = []
    for image in x:
        patches = F.unfold(image[None], config.patch, stride=config.patch)[0].T
        kernel = state["embedding.patch.weight"].flatten(1)
        tokens = torch.cat(
            [state["embedding.class_token"][0], patches @ kernel.T + state["embedding.patch.bias"]]
        )
        tokens = tokens + state["positions.table"][0]
        for layer in range(config.depth):
            tokens = one_block(state, f"blocks.{layer}.", tokens, config.heads)
        rows.append(norm(state, "norm.", tokens)[0])
    return torch.stack(rows) @ state["head.weight"].T + state["head.bias"]


def norm(state: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[prefix + "weight"] + state[prefix + "bias"]


def one_block(state: dict[str, Tensor], prefix: str, x: Tensor, heads: int) -> Tensor:
    def dense(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    query, key, value = dense("attention.qkv", norm(state, prefix + "norm1.", x)).chunk(3, dim=-1)
    outputs = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        outputs.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    x = x + dense("attention.out", torch.cat(outputs, dim=-1))
    hidden = dense("mlp.up", norm(state, prefix + "norm2.", x))
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return x + dense("mlp.down", gelu)


def test_the_network_follows_the_papers_equations() -> None:
    model = small().double().eval()
    x = images().double()
    torch.testing.assert_close(model(x), by_the_equations(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_takes_part(variant: str) -> None:
    model = small(**VARIANTS[variant])
    (model(images()).square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts all logits of a query alike: its gradient is rounding only, but that of the
        # query's is not.
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_heads_view_of_the_features(variant: str) -> None:
    model = small(**VARIANTS[variant]).eval()
    features = model.features(images())
    assert features.shape == (3, 32)
    torch.testing.assert_close(model(images()), model.head(features))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("gap", "map", "sincos2d")])
def test_leaving_out_what_nobody_reads_changes_no_value_and_no_gradient(variant: str) -> None:
    model = small(**VARIANTS[variant]).double()
    x = images().double()
    gradients = []
    for first_only in (True, False):
        model.zero_grad()
        tokens = model.encode_tokens(model.tokens(x), first_only)
        assert tokens.shape[1] == (1 if first_only else model.config.num_tokens)
        model.norm(tokens)[:, 0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_weights_are_what_the_fused_kernel_uses(variant: str) -> None:
    model = small(**VARIANTS[variant]).eval()
    attention = model.blocks[0].attention
    tokens = torch.randn(2, model.config.num_tokens, 32, generator=torch.Generator().manual_seed(2))
    offsets = model.offsets_of(0)
    weights = attention.weights(tokens, offsets)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    value = attention._split(tokens)[2]
    expected = attention.out((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens, offsets), expected, rtol=1e-4, atol=1e-5)


def test_relative_logits_pair_each_query_with_the_key_of_its_offset() -> None:
    generator = torch.Generator().manual_seed(4)
    query, offsets = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(9, 12, generator=generator)
    logits = relative_logits(query, offsets)
    for head in range(3):
        for q in range(5):
            for k in range(5):
                key = offsets[q - k + 4, 4 * head : 4 * head + 4]
                torch.testing.assert_close(logits[:, head, q, k], query[:, head, q] @ key / 2)


@pytest.mark.parametrize("variant", ["token", "layers", "relative", "root"])
def test_activation_checkpointing_changes_no_gradient(variant: str) -> None:
    model = small(dropout=0.1, stochastic_depth=0.2, **VARIANTS[variant])
    runs: list[object] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: runs.append(module))
    gradients = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        runs.clear()
        torch.manual_seed(7)
        model(images()).square().sum().backward()
        assert len(runs) == (4 if on else 2), "each of two blocks runs again in the backward pass"
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_dropout_and_stochastic_depth_act_in_training_only_and_follow_the_global_seed() -> None:
    model = small(dropout=0.3, stochastic_depth=0.5)
    torch.manual_seed(0)
    first, second = model(images()), model(images())
    torch.manual_seed(0)
    assert torch.equal(model(images()), first)
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_dropout_stands_where_the_authors_put_it() -> None:
    model = small(dropout=0.25, depth=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if "mlp" in name or "attention" in name else parameter
            )
        model.blocks[0].mlp.down.bias.fill_(1.0)
        model.blocks[0].attention.out.bias.fill_(10.0)
    torch.manual_seed(1)
    tokens = model.positions(model.tokens(images(1)), 0).detach()
    torch.manual_seed(1)
    entered = model.positioned(model.tokens(images(1)), 0).detach()
    kept = entered != 0
    assert 0.15 < 1 - kept.float().mean() < 0.35
    torch.testing.assert_close(entered[kept], tokens[kept] / 0.75)
    added = (model.blocks[0](entered) - entered).detach()
    values = {round(float(value), 2) for value in added.flatten()}
    assert values == {0.0, 1.33, 13.33, 14.67}  # branch outputs 10 and 1, each dropped or scaled by 1 / 0.75


def test_a_dropped_branch_keeps_its_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    dropped = drop_branch(x, 0.25)
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert {round(float(value), 4) for value in per_sample[:, 0].unique()} == {0.0, 1.3333}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)


def test_drop_rates_rise_linearly_to_the_last_block() -> None:
    model = small(depth=5, stochastic_depth=0.2)
    rates = [block.drop_rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["train", pytest.param("eval", marks=pytest.mark.slow)])
def test_every_variant_is_one_graph_for_the_compiler(variant: str, mode: str) -> None:
    model = small(dropout=0.1, stochastic_depth=0.1, depth=1, **VARIANTS[variant])
    model.train(mode == "train")
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = model(images())
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(images()), expected)


# PyTorch's own: its compiler asks every input of a block for a gradient, those in mid-network too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_blocks_compile_one_by_one_with_and_without_recomputation() -> None:
    model = small(depth=3).train()
    expected = model(images())
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    for on in (False, True):
        model.set_activation_checkpointing(on)
        torch.testing.assert_close(model(images()), expected)
        model(images()).sum().backward()
    assert list(model.state_dict()) == list(small(depth=3).state_dict()), "names stay as they are"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["token", "map", "relative", "root"])
def test_compiled_models_give_the_same_outputs_and_gradients(variant: str) -> None:
    model = small(**VARIANTS[variant])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(images())
        logits.square().sum().backward()
        gradients.append(
            [logits.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]
        )
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 16, 24), (3, 16, 24)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images of shape .* found, expected \(batch, 3, 16, 24\)"):
        small()(torch.zeros(shape))


def test_low_precision_stays_close() -> None:
    model = small().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(images())
    torch.testing.assert_close(low.float(), model(images()), rtol=0.1, atol=0.1)
