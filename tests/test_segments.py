"""Segments: blocks of stored tensors in the matrix view of the checkpoint's parameter."""

from __future__ import annotations

import pytest
import torch

from thickets.perturbed.segments import Segment

STACK = torch.arange(3 * 4 * 5).view(3, 4, 5)


@pytest.mark.parametrize(
    ("segment", "tensor", "expected"),
    [
        (Segment("w"), STACK[0], STACK[0]),
        (Segment("w"), STACK, STACK.flatten(0, 1)),
        (Segment("w", convolution=True), STACK, STACK.flatten(1)),
        (Segment("w", convolution=True), STACK[:, :, :0], torch.empty(3, 0)),
        (Segment("w", index=(2,)), STACK, STACK[2]),
        (Segment("w", index=(1,), rows=(1, 3)), STACK, STACK[1, 1:3]),
        (Segment("w", rows=(1, 3)), STACK[0], STACK[0, 1:3]),
        (Segment("w", transposed=True), STACK[0], STACK[0].T),
        (Segment("w", index=(2,), rows=(0, 2), transposed=True), STACK, STACK[2, :2].T),
        (Segment("w", vector=True), STACK[0, 0], STACK[0, 0]),
        (Segment("w", vector=True, index=(1,), rows=(2, 5)), STACK[0], STACK[0, 1, 2:5]),
        (Segment("w", vector=True), STACK[0, 0, 0], STACK[0, 0, 0]),
        (Segment("w"), STACK[0, 0], STACK[0, :1]),
    ],
    ids=str,
)
def test_blocks_share_the_memory_of_the_tensor(
    segment: Segment, tensor: torch.Tensor, expected: torch.Tensor
) -> None:
    block = segment.of(tensor)
    assert block.shape == expected.shape
    assert torch.equal(block, expected.to(block.dtype))
    assert block.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_a_view_that_strides_do_not_allow_is_refused() -> None:
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        Segment("w").of(STACK.transpose(0, 1))


def test_an_index_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError):
        Segment("w", index=(3,)).of(STACK)
