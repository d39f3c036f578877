"""Another backbone: any of timm's with features at several stages, channels first or last.

    python examples/new_backbone.py

Prints for three backbones the stages that MSRN reads, and the shape of its answer. Weights are random: with pretrained=True timm
downloads them, or give a file by model.weights of a recipe.
"""

import torch

import msrn

target = (torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) < 0.4).int()
graph = msrn.LabelGraph.from_target(target, ["a", "b", "c", "d", "e"])
for backbone in ("mobilenetv2_050", "convnext_atto", "resnet18"):
    model = msrn.build_msrn(graph, backbone=backbone, dim=32).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 96, 96))
    print(f"{backbone}: channels of its stages {list(model.backbone.channels)}, logits {tuple(logits.shape)}")
