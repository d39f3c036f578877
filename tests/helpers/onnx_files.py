"""A small ONNX file as `msrn export` writes them, by hand: the mean of each colour, through a sigmoid."""

import json
from typing import Any

METADATA: dict[str, Any] = {
    "labels": ["red", "green", "blue"],
    "thresholds": [0.5, 0.5, 0.5],
    "preprocessing": {"size": [8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"},
    "version": "1",
}


def small_onnx(
    *, input_shape: tuple[Any, ...] = ("batch", 3, "height", "width"), num_outputs: Any = 3, **metadata: Any
) -> bytes:
    """The file's content.

    Args:
        input_shape: What the file says of its input.
        num_outputs: What the file says of its output.
        **metadata: In place of `METADATA`; text is taken as it is.
    """
    import onnx

    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("ReduceMean", ["images"], ["means"], axes=[-2, -1], keepdims=0),
        onnx.helper.make_node("Sigmoid", ["means"], ["probabilities"]),
    ]
    outputs = [value("probabilities", onnx.TensorProto.FLOAT, ["batch", num_outputs])]
    graph = onnx.helper.make_graph(nodes, "g", [value("images", onnx.TensorProto.FLOAT, list(input_shape))], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    for key, own in {**METADATA, **metadata}.items():
        model.metadata_props.add(key=key, value=own if isinstance(own, str) else json.dumps(own))
    data: bytes = model.SerializeToString()
    return data
