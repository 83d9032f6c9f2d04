"""The edge map against kornia's Sobel, and its pooling over tokens."""

from __future__ import annotations

import kornia
import pytest
import torch

from core.pictures import picture
from hilo_core.frequency import edge_energy, regionalise


def test_equals_kornia_up_to_its_normalisation() -> None:
    image = picture(75, 58, seed=3)
    luma = kornia.color.rgb_to_grayscale(image.movedim(-1, 1))
    reference = kornia.filters.sobel(luma, normalized=True, eps=0.0)[0, 0] * 8  # kornia divides its kernel by 8
    # The outermost pixels differ: OpenCV mirrors there and kornia repeats.
    torch.testing.assert_close(edge_energy(image)[1:-1, 1:-1], reference[1:-1, 1:-1], atol=1e-5, rtol=1e-4)


def test_a_batch_takes_the_strongest() -> None:
    images = picture(48, 64, batch=3)
    alone = torch.stack([edge_energy(images[i : i + 1]) for i in range(3)])
    assert torch.equal(edge_energy(images), alone.amax(0))


def test_the_same_picture_has_the_same_edges_wherever_its_memory_lies() -> None:
    image = picture(48, 64)
    assert all(torch.equal(edge_energy(image.clone()), edge_energy(image)) for _ in range(200))


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_picture_has_no_edges(level: float) -> None:
    energy = edge_energy(torch.full((1, 64, 64, 3), level))
    assert not regionalise(energy, 4, 4, 16).any()


def test_regions_are_means_over_tokens_and_the_strongest_is_1() -> None:
    energy = torch.rand(48, 64, generator=torch.Generator().manual_seed(0))
    pooled = energy.view(3, 16, 4, 16).mean((1, 3)).flatten()
    torch.testing.assert_close(regionalise(energy, 3, 4, 16), pooled / pooled.max())


def test_a_cut_last_token_repeats_the_border() -> None:
    energy = torch.rand(40, 56, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([energy, energy[-1:].expand(8, -1)])
    whole = torch.cat([whole, whole[:, -1:].expand(-1, 8)], dim=1)
    assert torch.equal(regionalise(energy, 3, 4, 16), regionalise(whole, 3, 4, 16))


def test_one_edge_marks_the_tokens_it_crosses() -> None:
    image = torch.zeros(1, 64, 96, 3)
    image[:, :, 40:] = 1
    share = regionalise(edge_energy(image), 4, 6, 16).view(4, 6)
    assert (share[:, 2] == 1).all(), "the edge lies in the third column of tokens"
    assert not share[:, [0, 1, 3, 4, 5]].any()
