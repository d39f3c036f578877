"""One file for a phone: ONNX in 8 bits, run by onnxruntime without PyTorch.

    python examples/export_to_a_phone.py BUNDLE IMAGES

Prints the size of the files, and the labels that the original and both files give to the first image. The same file runs in
onnxruntime for Android and iOS; its metadata hold labels, thresholds and preprocessing.
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
print("original", [label.name for label in msrn.load(bundle).predict(photos[0])[0].labels])
loaded = msrn.load_bundle(bundle)
calibration = torch.stack([loaded.preprocessing(read_image(photo)) for photo in photos])
for precision in ("fp32", "int8"):
    out = Path(tempfile.mkdtemp()) / f"{precision}.onnx"
    export_model(loaded, out, calibration, precision=precision)
    labels = [label.name for label in OnnxPredictor(out).predict(photos[0])[0].labels]
    print(f"{precision}: {out.stat().st_size / 1e6:.2f} MB", labels)
