"""One file for a phone: ONNX in 8 bits, run by onnxruntime without PyTorch.

    python examples/export_to_a_phone.py BUNDLE IMAGES

Prints the sizes of the original's weights and of the file, and the labels that both give to the first image. The same file runs
in onnxruntime for Android and iOS; its metadata hold labels, thresholds and preprocessing.
"""

import sys
import tempfile
from pathlib import Path

import torch

import msrn
from msrn.data import list_images, read_image
from msrn.export import OnnxPredictor, export_model

bundle, images = sys.argv[1:3]
photos = list_images(images)[:64]
loaded = msrn.load_bundle(bundle)
calibration = torch.stack([loaded.preprocessing(read_image(photo)) for photo in photos])
out = Path(tempfile.mkdtemp()) / "int8.onnx"
export_model(loaded, out, calibration, precision="int8")
answers = {
    Path(bundle) / "model.safetensors": msrn.load(bundle).predict(photos[0]),
    out: OnnxPredictor(out).predict(photos[0]),
}
for file, predictions in answers.items():
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB", [label.name for label in predictions[0].labels])
