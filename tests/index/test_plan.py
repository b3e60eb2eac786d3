from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.errors import ConfigError
from cdkit.index.layout import choose_layout, compressed_layout
from cdkit.index.plan import plan_index
from cdkit.index.rates import Figure, Rates


def test_small_indexes_are_exact_and_large_ones_compressed() -> None:
    assert choose_layout(5_000, 512).factory == "IDMap2,Flat"
    assert choose_layout(150_000, 512).factory == "IDMap2,SQfp16"
    assert choose_layout(1_000_000, 512).factory == "RR320,IVF2048,RaBitQ"
    assert choose_layout(400_000_000, 768).factory == "RR320,IVF131072_HNSW32,RaBitQ"


def test_a_code_that_divides_the_dimensions_badly_gives_way() -> None:
    sizes = [(48, 128), (40, 128), (64, 100), (64, 768), (80, 128)]
    layouts = [compressed_layout(10**6, dimension, size) for size, dimension in sizes]
    assert [(layout.code_bytes, layout.reduced) for layout in layouts] == [
        *((48, 96), (40, 120), (50, 100), (64, 256), (64, 128))
    ]


def test_too_few_captions_to_train_on_fall_back_to_exact() -> None:
    assert choose_layout(9_000, 64, exact_below=0).exact
    assert not choose_layout(10_000, 64, exact_below=0).exact


@given(st.integers(1, 10**10), st.integers(1, 4096), st.integers(4, 256))
def test_every_layout_can_be_built(captions: int, dimension: int, code_bytes: int) -> None:
    layout = choose_layout(captions, dimension, code_bytes)
    assert layout.training_points <= captions
    if not layout.exact:
        assert 1 <= layout.code_bytes <= min(code_bytes, dimension)
        assert layout.code_bytes <= layout.reduced <= dimension
        assert layout.signs or layout.reduced % layout.code_bytes == 0
        assert layout.lists * 39 <= captions
        tables = 4 * dimension * layout.reduced + 4 * 256 * layout.reduced + 16 * (4 * layout.reduced + 300)
        assert layout.index_bytes <= captions * (layout.code_bytes + 8) * 1.15 + tables


def test_a_million_captions_take_at_most_sixty_bytes_each() -> None:
    layout = choose_layout(1_000_000, 512)
    assert layout.index_bytes / 1_000_000 <= 60


def test_the_plan_marks_every_figure_and_one_choice() -> None:
    plan = plan_index(400_000_000, 768, threads=1)
    assert [choice.factory for choice in plan.choices if choice.chosen] == ["RR320,IVF131072_HNSW32,RaBitQ"]
    assert len(plan.choices) >= 4
    data = plan.as_json()
    rates = {name: rate["basis"] for name, rate in data["rates"].items() if isinstance(rate, dict)}
    assert rates.pop("embedded") == "estimated"
    assert set(rates.values()) == {"measured"}
    for choice in data["choices"]:
        figures = [value for value in choice.values() if isinstance(value, dict)]
        assert {figure["basis"] for figure in figures} == {"estimated"}
        assert all(figure["value"] >= 0 for figure in figures)
    chosen = next(choice for choice in plan.choices if choice.chosen)
    assert chosen.train_seconds.value > 60
    assert 22e9 < chosen.disk.value < 24e9


def _rates(*, on_gpu: bool, faster: float = 1.0) -> Rates:
    values = {"multiplications": 4e10, "added": 2e4, "embedded": 100, "read": 2e5, "written": 1e9}
    values |= {"compared": 3e10, "scanned": 1e8, "exact": 1e5}
    device = dict.fromkeys(("multiplications", "added", "embedded"), faster)
    figures = {name: Figure(value * device.get(name, 1.0), "", "measured") for name, value in values.items()}
    return Rates(**figures, threads=2, device="a device", on_gpu=on_gpu)


def test_a_plan_names_the_longest_part_and_what_shortens_it() -> None:
    slow = plan_index(10_000_000, 768, rates=_rates(on_gpu=False))
    fast = plan_index(10_000_000, 768, rates=_rates(on_gpu=True, faster=1000))
    assert slow.embed_seconds.value == pytest.approx(100_000)
    assert slow.advice[0] == "Most of the time goes into embedding."
    assert "A GPU" in slow.advice[1]
    assert "More GPUs" in fast.advice[1]
    chosen = [next(choice for choice in plan.choices if choice.chosen) for plan in (slow, fast)]
    assert chosen[1].train_seconds.value < chosen[0].train_seconds.value / 2
    # A GPU is faster than embeddings are read.
    assert chosen[1].add_seconds.value == pytest.approx(10_000_000 / 2e5 + chosen[1].disk.value / 1e9, rel=1e-3)
    assert chosen[0].measure_seconds.value == chosen[1].measure_seconds.value > 10


def test_an_impossible_plan_lists_its_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_index(0, -1)
    assert len(caught.value.problems) == 2
