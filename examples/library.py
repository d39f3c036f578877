"""MSRN as a PyTorch module: a label graph from targets, a network over a timm backbone, one training step, a prediction.

    python examples/library.py

Prints the graph's edges, the number of parameters, the loss of two steps, and the probabilities of one image.
"""

import torch

import msrn

torch.manual_seed(0)
labels = ["sea", "ship", "car", "street"]
target = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
)  # -1 is unknown
graph = msrn.LabelGraph.from_target(target, labels)
print(f"{graph.num_edges} edges")

model = msrn.build_msrn(graph, backbone="resnet10t", backbone_options={"channels": [16, 16, 32, 32]}, dim=32)
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

images = torch.randn(len(target), 3, 64, 64)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(2):
    loss = torch.nn.functional.multilabel_soft_margin_loss(model(images), target.float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.2f}")

model.eval()
with torch.no_grad():
    probabilities = model(images[:1]).sigmoid()[0]
print(
    ", ".join(f"{label} {probability:.2f}" for label, probability in zip(labels, probabilities.tolist(), strict=True))
)
