"""Each adapter of a weight keeps what it says it keeps, by convolving with both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from nnunet_genesis.transfer.kernels import (
    identity_kernel,
    resize_kernel,
    resize_transposed_kernel,
    resize_vector,
    resize_widths,
)

ODD = st.sampled_from([1, 3, 5])
EDGES = st.tuples(ODD, ODD, ODD)
FEW = settings(max_examples=25, deadline=None)


def weight_of(edges, inputs: int = 2, width: int = 3) -> torch.Tensor:
    return torch.randn(width, inputs, *edges, dtype=torch.float64)


def convolved(image: torch.Tensor, weight: torch.Tensor, stride=1, mode: str = "constant") -> torch.Tensor:
    pads = [pad for edge in reversed(weight.shape[2:]) for pad in 2 * [(edge - 1) // 2]]
    return F.conv3d(F.pad(image, pads, mode=mode), weight, stride=stride)


@FEW
@given(EDGES, EDGES, st.tuples(*[st.sampled_from([1, 2])] * 3))
def test_longer_kernels_respond_the_same_everywhere(have, want, stride):
    want = tuple(map(max, have, want))
    weight, image = weight_of(have), torch.randn(1, 2, 7, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(
        convolved(image, resize_kernel(weight, want), stride), convolved(image, weight, stride), rtol=0, atol=1e-12
    )


@FEW
@given(EDGES, EDGES)
def test_shorter_kernels_respond_the_same_to_what_is_constant_along_the_axis(have, want):
    weight, image = weight_of(have), torch.randn(1, 2, 7, 8, 9, dtype=torch.float64)
    for axis, (a, b) in enumerate(zip(have, want, strict=True), start=2):
        if b < a:
            image = image.mean(axis, keepdim=True).expand_as(image)
    fitted = resize_kernel(weight, want)
    assert fitted.shape[2:] == want
    # around the axes' ends, where zero padding breaks the constancy, nothing is promised: hence circular padding
    torch.testing.assert_close(
        convolved(image, fitted, mode="circular"), convolved(image, weight, mode="circular"), rtol=0, atol=1e-11
    )


@FEW
@given(EDGES, EDGES)
def test_shrinking_undoes_growing(have, want):
    weight = weight_of(have)
    assert torch.equal(resize_kernel(resize_kernel(weight, tuple(map(max, have, want))), have), weight)
    assert torch.equal(resize_kernel(weight, have), weight)


def test_one_tap_is_the_sum_and_even_kernels_have_no_centre():
    weight = weight_of((3, 3, 3))
    torch.testing.assert_close(resize_kernel(weight, (1, 3, 3)), weight.sum(2, keepdim=True))
    five = torch.arange(1.0, 6.0).reshape(1, 1, 5, 1, 1)
    assert resize_kernel(five, (3, 1, 1)).flatten().tolist() == [3, 3, 9]
    with pytest.raises(ValueError, match="no common centre"):
        resize_kernel(weight, (2, 3, 3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_more_taps_repeat_and_fewer_average_the_output(axis):
    features = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    one = [2, 2, 2]
    one[axis] = 1
    few, many = weight_of(one), weight_of((2, 2, 2))

    def upsampled(weight: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose3d(features, weight.transpose(0, 1), stride=weight.shape[2:])

    repeated = upsampled(few).repeat_interleave(2, axis + 2)
    torch.testing.assert_close(upsampled(resize_transposed_kernel(few, (2, 2, 2))), repeated, rtol=0, atol=1e-12)
    window = [1, 1, 1]
    window[axis] = 2
    averaged = F.avg_pool3d(upsampled(many), window, window)
    torch.testing.assert_close(upsampled(resize_transposed_kernel(many, one)), averaged, rtol=0, atol=1e-12)


@FEW
@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_other_taps_keep_their_mean_and_repetition_is_undone(have, want):
    weight = weight_of(have)
    fitted = resize_transposed_kernel(weight, want)
    assert fitted.shape == (3, 2, *want)
    torch.testing.assert_close(fitted.mean((2, 3, 4)), weight.mean((2, 3, 4)))
    multiple = tuple(a * b for a, b in zip(have, want, strict=True))
    torch.testing.assert_close(resize_transposed_kernel(resize_transposed_kernel(weight, multiple), have), weight)


@FEW
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_wider_layers_give_the_old_outputs_whatever_the_new_inputs_hold(up, skip, more_up, more_skip, more_out):
    weight, image = weight_of((3, 3, 3), up + skip), torch.randn(1, up + skip, 4, 4, 4, dtype=torch.float64)
    fresh = weight_of((3, 3, 3), up + more_up + skip + more_skip, 3 + more_out)
    fitted = resize_widths(weight, fresh, (up, skip), (up + more_up, skip + more_skip))
    noise = torch.randn(2, 1, 2, 4, 4, 4, dtype=torch.float64)
    wide = torch.cat([image[:, :up], noise[0, :, :more_up], image[:, up:], noise[1, :, :more_skip]], 1)
    response = convolved(wide, fitted)
    torch.testing.assert_close(response[:, :3], convolved(image, weight), rtol=0, atol=1e-12)
    torch.testing.assert_close(response[:, 3:], convolved(wide, fresh)[:, 3:], rtol=0, atol=1e-12)


def test_narrower_layers_are_the_leading_slice():
    weight, fresh = weight_of((1, 1, 1), 7, 5), weight_of((1, 1, 1), 4, 3)
    assert torch.equal(resize_widths(weight, fresh, (4, 3), (2, 2)), weight[:3, [0, 1, 4, 5]])
    assert torch.equal(resize_vector(torch.arange(5.0), torch.zeros(3)), torch.arange(3.0))
    assert torch.equal(resize_vector(torch.arange(2.0), torch.full((3,), 9.0)), torch.tensor([0.0, 1.0, 9.0]))


@pytest.mark.parametrize("edges", [(1, 1, 1), (1, 3, 3), (3, 3, 5)])
@pytest.mark.parametrize("inputs", [3, 7])
def test_passing_on_gives_out_the_last_inputs(edges, inputs):
    image = torch.randn(1, inputs, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(convolved(image, identity_kernel(weight_of(edges, inputs))), image[:, -3:])
