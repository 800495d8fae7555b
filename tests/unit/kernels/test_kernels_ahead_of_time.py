"""Every Triton kernel compiles for every target with no GPU, and none spills more than it did."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("triton")

from rewardsvc.kernels import aot
from rewardsvc.kernels.linear import fused
from rewardsvc.kernels.policy import triton_rows as policy
from rewardsvc.kernels.scan import triton_rows as scan
from rewardsvc.kernels.tiles import triton_kernels, triton_ops


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", list(aot.TARGETS))
def test_no_kernel_spills_more_than_in_the_report(target):
    _, before = aot.load_report()
    now = aot.compile_all([target])
    assert aot.spill_regressions(before, now) == []
    limit = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}[target]
    for name, usage in now.items():
        assert usage[target]["shared_bytes"] <= limit, name


def test_the_catalogue_has_every_kernel():
    modules = (triton_kernels, fused, policy, scan)
    kernels = {
        name
        for module in modules
        for name, value in inspect.getmembers(module)
        if name.endswith("_kernel") and type(value).__name__ == "JITFunction"
    }
    assert len(kernels) == 7
    assert {variant.kernel.__name__ for variant in aot.catalogue()} == kernels


def test_the_report_has_every_variant_and_target():
    _, report = aot.load_report()
    assert report.keys() == {variant.name for variant in aot.catalogue()}
    assert all(row.keys() == aot.TARGETS.keys() for row in report.values())


def test_a_regression_is_named():
    before = {"gae": {"sm_90": {"registers": 9, "spilled_bytes": 0, "shared_bytes": 0}}}
    now = {"gae": {"sm_90": {"registers": 9, "spilled_bytes": 8, "shared_bytes": 0}}}
    assert aot.spill_regressions(before, before) == []
    assert aot.spill_regressions(before, now) == ["gae for sm_90 spills 8 bytes a thread, before 0"]
    assert aot.spill_regressions({}, now) == ["gae is not in both reports"]


@pytest.mark.parametrize("num_rows", [1, 65_537, 2**20])
def test_rows_go_on_the_grid_axis_that_holds_them(num_rows):
    rows, blocks = triton_ops.grad_grid(num_rows, 248_320)
    assert rows == num_rows
    assert blocks <= 65_535


@pytest.mark.parametrize("num_columns", [1, 151, 1000, 1025, 129_920])
@pytest.mark.parametrize("topk", [0, 8])
def test_tiles_depend_on_columns_alone_and_are_powers_of_two(num_columns, topk):
    depth, lanes = triton_ops.tile_shape(num_columns, topk)
    assert depth & (depth - 1) == 0
    assert lanes & (lanes - 1) == 0
    assert depth * lanes >= min(num_columns, 2048)
