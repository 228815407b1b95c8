"""What is known of cards, what is picked by timing, and what running out of memory says."""

import time

import pytest
import torch

from device import (
    OUT_OF_MEMORY,
    Precision,
    bfloat16_is_fast,
    fastest_of,
    out_of_memory_is_said,
    peak_of_card,
    product_seconds,
)
from errors import UserError


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", 147),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 3060", 25.5),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("a card of next year", None),
    ],
)
def test_a_cards_peak_is_known_by_its_whole_name(name, tflops):
    assert peak_of_card(name) == (tflops and tflops * 1e12)


def test_the_fastest_is_picked_and_a_hopeless_one_is_tried_once():
    tried = [Precision(), Precision(plain_attention=True), Precision(torch.bfloat16), Precision(torch.float16)]
    seconds, turns = (0.02, 0.01, 0.015, 0.2), [0, 0, 0, 0]

    def step(precision):
        i = tried.index(precision)
        turns[i] += 1
        time.sleep(seconds[i])

    picked, times = fastest_of(tried, step)
    assert picked is tried[1] and times > 1.2
    assert turns[3] == 1 and turns[1] == 5


@pytest.mark.parametrize(
    ("features", "seconds", "fast"),
    [
        ({}, None, False),
        ({"avx2": True, "avx512_bf16": False}, None, False),
        ({"avx512_bf16": True}, {torch.bfloat16: 0.1, torch.float32: 0.2}, True),
        ({"bf16": True}, {torch.bfloat16: 0.2, torch.float32: 0.1}, False),
    ],
)
def test_bfloat16_is_timed_only_where_the_processor_has_it(features, seconds, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr("device.product_seconds", lambda dtype: seconds[dtype])
    assert bfloat16_is_fast() is fast


def test_a_product_that_takes_long_is_timed_once_after_its_kernel_is_built(monkeypatch):
    products = []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *tensors: products.append(tensors))
    monkeypatch.setattr("device.PRODUCT_SECONDS", -1)
    assert 0 < product_seconds(torch.bfloat16) < float("inf")
    assert len(products) == 2 and products[0][0].dtype == torch.bfloat16


@pytest.mark.parametrize("words", OUT_OF_MEMORY)
def test_running_out_of_memory_is_known_by_what_torch_says(words):
    with pytest.raises(UserError, match="batch_tokens"), out_of_memory_is_said(torch.device("cpu")):
        raise RuntimeError(f"[enforce fail] {words}: you tried to allocate 99 bytes")
