"""jaxstab's chapter against an independent PyTorch one, in distribution; small, and skipped where torch is not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra [bench])")

from experiments.benchmarks import torch_chapter  # noqa: E402 - where there is no torch, nothing is imported

SEEDS, OWN_SEEDS = 30, 256


def smallest_p(case, own_seeds=OWN_SEEDS):
    found, _ = torch_chapter.compare("", case, SEEDS, own_seeds)
    assert found
    return min(one.p for one in found)


@pytest.mark.parametrize("way", ["scratch", "concise"])
def test_the_norm_of_w_has_pytorch_s_law(way):
    assert smallest_p(torch_chapter.decay_case(way, 3)) > torch_chapter.LEAST_P


def test_one_way_taken_for_the_other_is_seen():
    assert smallest_p(torch_chapter.decay_case("scratch", 3, other="concise")) < torch_chapter.LEAST_P


def test_polynomial_weights_have_pytorch_s_law():
    assert smallest_p(torch_chapter.polynomial_case(2, 20)) > torch_chapter.LEAST_P
    assert smallest_p(torch_chapter.polynomial_case(4, 20)) > torch_chapter.LEAST_P


@pytest.mark.parametrize("way", ["scratch", "concise"])
def test_classifiers_have_pytorch_s_law(way):
    assert smallest_p(torch_chapter.classifier_case(way, "digits", 2), SEEDS) > torch_chapter.LEAST_P
