"""int8 graphs: weights ahead of time, activations as they come (dynamic quantisation).

Weights are signed and have a scale per output channel. Measured on a processor with VNNI: unsigned
weights take 1.4 to 1.7 times as long, and seven bits (`reduce_range`), which older processors need
against overflow, cost rank agreement and gain nothing.

Heads stay float: they are a few rows, and their error would be the score's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rewardsvc.engine.onnx.folder import MODEL_FILE

HEAD_ROWS = 8
"""A matrix with at most so many outputs is a head."""

MAX_PROTO_BYTES = 2**31 - 2**20
"""Beyond it, weights go into a file of their own: a protobuf message cannot be larger."""

QUANTISED_OPERATORS = ("MatMul", "Gemm")


def quantise(source: Path, target: Path, *, reduce_range: bool = False) -> None:
    """Writes the int8 form of a graph.

    Args:
        source: A folder with a float graph.
        target: A folder that exists, another one.
        reduce_range: Seven bits, for processors without VNNI whose sums overflow 16 bits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(source / MODEL_FILE))
    # The exporter's optimiser transposes weights and leaves their old shapes behind, at which the
    # shape inference of the quantiser stops.
    del graph.graph.value_info[:]
    num_bytes = sum(f.stat().st_size for f in source.glob(f"{MODEL_FILE}*"))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that this graph does not need
    try:
        quantize_dynamic(
            graph,
            target / MODEL_FILE,
            op_types_to_quantize=list(QUANTISED_OPERATORS),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_heads(graph.graph),
            use_external_data_format=num_bytes > MAX_PROTO_BYTES,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(level)


def _heads(graph: Any) -> list[str]:
    """Names of the nodes that apply a matrix with few outputs."""
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    heads = []
    for node in graph.node:
        if node.op_type not in QUANTISED_OPERATORS:
            continue
        shape = shapes.get(node.input[1], ())
        if len(shape) == 2 and min(shape) <= HEAD_ROWS:
            heads.append(node.name)
    return heads
