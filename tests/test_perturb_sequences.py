"""Attention, transformers and recurrent modules: member by member, batch-first only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from members_oracle import (
    SEEDS,
    SIGMAS,
    TOLERANCE,
    assert_members,
    check,
    check_compiled,
    evaluate,
    one_by_one,
    randn,
    seeded,
)
from torch import Tensor, nn

import thickets

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:running member by member",
        "ignore:.*nested tensors is in prototype",
        "ignore:.*deprecated",
    ),
]


class Around(nn.Module):
    """A function of an inner module and the input, then a Linear."""

    def __init__(self, inner: nn.Module, use: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.inner = inner
        self.use = use
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.inner, x))


def attention(batch_first: bool = True) -> nn.Module:
    return Around(
        nn.MultiheadAttention(8, 2, batch_first=batch_first), lambda m, x: m(x, x, x, need_weights=False)[0]
    )


def encoder_layer(batch_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(), 2)


def test_multihead_attention_runs_member_by_member() -> None:
    check(attention, randn(2, 5, 8), slow=["inner"])


def test_attention_as_the_whole_model_returns_its_weights_too() -> None:
    x = randn(2, 5, 8)
    check(lambda: nn.MultiheadAttention(8, 2, batch_first=True), x, x, x, slow=["the model"])


def test_attention_masks() -> None:
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)

    class Masked(nn.Module):
        def __init__(self, per_head: bool) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)
            self.per_head = per_head

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            attn_mask = mask.expand(2 * x.shape[0], 5, 5) if self.per_head else mask
            return self.head(self.attend(x, x, x, key_padding_mask=padding, attn_mask=attn_mask)[0])

    padding = torch.tensor([[False] * 5, [False] * 4 + [True]])
    check(lambda: Masked(False), randn(2, 5, 8), padding, slow=["attend"])
    check(lambda: Masked(True), randn(2, 5, 8), padding, slow=["attend"])


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_in_eval_mode_takes_no_fast_path(norm_first: bool) -> None:
    """In eval mode it would read its children's weights; only the attention is slow, the rest is not."""
    make = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)  # noqa: E731
    check(make, randn(2, 5, 8), slow=["self_attn"])


def test_encoder_layer_in_training_mode() -> None:
    make = seeded(lambda: encoder_layer())
    model = make().train()
    pm = thickets.perturb(model)
    x = randn(2, 5, 8)
    assert_members(evaluate(pm, x), one_by_one(pm, lambda: make().train(), x))
    assert model.training


def test_encoder_with_padding_equals_its_nested_tensors() -> None:
    """The ordinary forward zeroes the padding; so does ours."""
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    slow = ["layers.0.self_attn", "layers.1.self_attn"]
    pm = check(encoder, randn(2, 5, 8), slow=slow, src_key_padding_mask=padding)
    with pm.members(SEEDS, SIGMAS):
        assert not pm(randn(2, 5, 8), src_key_padding_mask=padding)[:, 1, 3:].any()
    check(encoder, randn(2, 5, 8), slow=slow)


def test_whole_transformer() -> None:
    make = lambda: nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True)  # noqa: E731
    attentions = [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    ]
    check(make, randn(2, 5, 8), randn(2, 4, 8), slow=attentions)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: attention(batch_first=False), randn(5, 2, 8)),
        (lambda: encoder_layer(batch_first=False), randn(5, 2, 8)),
        (lambda: Around(nn.LSTM(8, 8), lambda m, x: m(x)[0]), randn(5, 2, 8)),
        (lambda: nn.GRU(8, 8), randn(5, 2, 8)),
    ],
    ids=["attention", "encoder-layer", "lstm", "gru"],
)
def test_modules_that_are_not_batch_first_are_refused(make: Any, x: Tensor) -> None:
    pm = thickets.perturb(make().eval())
    with pm.members(SEEDS, SIGMAS), pytest.raises(ValueError, match="batch_first must be True for"):
        pm(x)


def test_an_unperturbed_module_that_is_not_batch_first_is_refused() -> None:
    pm = thickets.perturb(attention(batch_first=False).eval(), include="head.*")
    with pm.members(SEEDS, SIGMAS), pytest.raises(ValueError, match="batch_first must be True for"):
        pm(randn(5, 2, 8))


def test_an_unperturbed_sequence_without_batch_does_not_mix_the_members() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.attend = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.attend(y, y, y)[0]

    check(Attending, randn(5, 8), options={"include": "layer.*"})


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules(kind: Any) -> None:
    make = lambda: kind(8, 6, 2, batch_first=True, bidirectional=True)  # noqa: E731
    check(make, randn(2, 5, 8), slow=["the model"])

    def last_state(module: nn.Module, x: Tensor) -> Tensor:
        state = module(x)[1]
        return (state[0] if isinstance(state, tuple) else state)[-1]

    check(lambda: Around(make(), last_state, 6), randn(2, 5, 8), slow=["inner"])


def test_recurrent_state_is_split_along_its_batch() -> None:
    def continued(module: nn.Module, x: Tensor) -> Tensor:
        output, state = module(x[:, :2])
        return output + module(x[:, 2:], state)[0]

    check(lambda: Around(nn.LSTM(8, 8, 3, batch_first=True), continued), randn(3, 4, 8), slow=["inner"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make", [attention, lambda: nn.Sequential(nn.GRUCell(8, 8))], ids=["attention", "cell"]
)
def test_half_precision_modules(make: Any, dtype: torch.dtype) -> None:
    x = randn(2, 5, 8) if make is attention else randn(2, 8)
    make = seeded(make, dtype)
    for precision in ("exact", "storage"):
        pm = thickets.perturb(make(), precision=precision)
        actual = evaluate(pm, x.to(dtype))
        assert actual.dtype == dtype
        wide = torch.float32 if precision == "exact" else dtype
        expected = one_by_one(pm, make, x.to(dtype).to(wide), dtype=wide)
        assert_members(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("noise", ["normal4", "rademacher", "hadamard", "lowrank-2"])
def test_every_family_on_the_slow_path(noise: str) -> None:
    check(attention, randn(2, 5, 8), slow=["inner"], options={"noise": noise})


@pytest.mark.parametrize("make", [attention, encoder_layer])
def test_compiled_attention_sees_new_members(make: Any) -> None:
    check_compiled(make, randn(2, 5, 8))
