"""How direct convolutions are cut into items."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tilewright.compiler.kernels.conv_sharing import Costs, Cut, evenly, shared

from .support import AVX512

KIB = 1 << 10
ONE = replace(AVX512, threads=1, l1_bytes=32 * KIB, l2_bytes=1024 * KIB)
TWO = replace(ONE, threads=2)


def costs(**sizes: int) -> Costs:
    """A pointwise convolution of 32 panels and 1024 units, one tile each, in KiB."""
    kib = {k: v * KIB for k, v in sizes.items()}
    return Costs(
        ONE, 0, 32, 1024, (32, 1024), 1024, kib["weights"], kib["input"], kib["input"] // 1024
    )


def test_shares_cover_everything() -> None:
    assert shared(10, 4) == (3, 4)
    assert shared(9, 4) == (3, 3), "no share is empty"
    assert shared(3, 8) == (1, 3)


def test_even_cuts() -> None:
    assert evenly("oc", panels=5, units=9, wanted=8) == Cut(5, 2, "oc", "oc")
    assert evenly("sp", panels=5, units=9, wanted=8) == Cut(2, 5, "sp", "sp")


@pytest.mark.parametrize("panels, units", [(1, 1), (1, 40), (40, 1), (7, 5), (11, 56)])
@pytest.mark.parametrize("wanted", [1, 3, 16])
def test_cuts_are_what_kernels_make_of_them(panels: int, units: int, wanted: int) -> None:
    """Every cut names the parts and shares that there really are, and most make enough items."""
    c = Costs(ONE, 0, panels, units, (panels, units), units, 64 * KIB, 64 * KIB, KIB)
    found = list(c.cuts(wanted))
    assert len(set(found)) == len(found)
    for cut in found:
        assert shared(panels, cut.parts)[1] == cut.parts
        assert shared(units, cut.shares)[1] == cut.shares
    assert max(x.parts * x.shares for x in found) >= min(wanted, panels * units)
    assert {x.order for x in found} == {"oc", "sp"}
    assert c.best(wanted) in found


def test_a_large_input_is_read_once() -> None:
    """8 MiB of input and 512 KiB of weights: a share of the input stays in the second cache while
    all weights, which stay there too, go by."""
    best = costs(weights=512, input=8192).best(16)
    assert best.items == "sp" or best.parts == 1
    assert 8192 / best.shares + 512 <= 0.7 * 1024


def test_large_weights_are_read_once() -> None:
    """8 MiB of weights for 256 KiB of input: each panel meets all places while it is near."""
    for device in (ONE, TWO):
        best = replace(costs(weights=8192, input=256), device=device).best(16)
        assert best.shares == 1 or best.items == "oc"


def test_small_panels_stay_in_the_first_cache() -> None:
    """Panels of 16 KiB serve many tiles; those of 64 KiB go by a tile's input of 4 KiB."""
    small = costs(weights=512, input=4096)
    assert small.best(16).order == "oc"
    large = costs(weights=2048, input=4096)
    assert large.best(16).order == "sp"


def test_lines_from_far_away() -> None:
    """Counted by hand: 4 MiB of input, 32 panels of 8 KiB that stay in the first cache."""
    c = costs(weights=256, input=4096)
    lines, panels = 4096 * KIB / 64, 256 * KIB / 64
    near = 32 * 1.5 * lines
    cut = Cut(1, 8, "sp", "oc")  # 512 KiB of input and a panel fit, all weights do not
    assert c.lines(cut) == near + 8.0 * lines + 1.5 * 8 * panels
    cut = Cut(1, 4, "sp", "oc")  # 1 MiB of input does not: read for every panel
    assert c.lines(cut) == near + 8.0 * 32 * lines + 1.5 * 4 * panels
    cut = Cut(1, 16, "sp", "oc")  # everything fits
    assert c.lines(cut) == near + 8.0 * lines + 1.5 * panels
    two = replace(c, device=TWO)
    assert two.lines(cut) == near / 2 + 4.0 * lines + 1.5 * panels, "each thread reads all weights"


def test_the_longest_share() -> None:
    c = replace(costs(weights=256, input=4096), device=TWO, panels=11, units=56, whole=(11, 56))
    assert c.longest(Cut(11, 1, "oc", "oc")) == 6 / 11, "six panels for one, five for the other"
    assert c.longest(Cut(11, 2, "oc", "oc")) == 1 / 2
    assert c.longest(Cut(1, 1, "sp", "oc")) == 1
    assert c.longest(Cut(2, 16, "sp", "oc")) == 0.5 + 6 / 11 * 4 / 56 / 2, "a smaller item is last"
    uneven = replace(c, panels=4, units=4, whole=(4, 3.5))
    assert uneven.longest(Cut(4, 1, "oc", "oc")) == 1 / 2
    assert uneven.longest(Cut(1, 4, "sp", "oc")) == 4 / 7, "of seven rows, the last is alone"
    busy = replace(c, slots=1e9)
    assert busy.longest(busy.best(8)) == 0.5, "an even number of items, if work is what matters"
