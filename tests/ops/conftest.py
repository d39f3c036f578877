"""Inputs of every kind, and how far a form is from the reference on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from msrn.ops import semantic_guided_attention
from msrn.ops.semantic_attention import cpu

SIZES = {49: (7, 7), 63: (7, 9), 196: (14, 14), 784: (28, 28), 3136: (56, 56)}


def draw_features(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Float64 features (B, D, P)."""
    normal, uniform = (draw(shape, generator=generator, dtype=torch.float64) for draw in (torch.randn, torch.rand))
    peak = torch.randint(shape[2], shape[:2], generator=generator)
    made: dict[str, Callable[[], Tensor]] = {
        "bell-shaped": lambda: normal,
        "sparse": lambda: (normal - 0.5).relu(),
        "two clusters": lambda: torch.where(uniform < 0.3, 1.0, -1.0) + 1e-3 * normal,
        "offset": lambda: 100 + normal,
        "one-hot": lambda: torch.nn.functional.one_hot(peak, shape[2]).double(),
        "constant": lambda: normal[..., :1].expand(shape).clone(),
        "heavy-tailed": lambda: 5 * (normal / uniform) / (normal / uniform).abs().amax(),
        "skewed": lambda: normal.exp(),
        "three values": lambda: (3 * uniform).floor(),
    }
    return made[kind]()


def draw_embeddings(kind: str, num_labels: int, features: Tensor, generator: torch.Generator) -> Tensor:
    """Float64 entries (L, D); the names of numbers are the largest |feature · entry|."""
    normal = torch.randn(num_labels, features.shape[1], generator=generator, dtype=torch.float64)
    if kind == "identical":
        return (2 * normal[:1]).expand(normal.shape).clone()
    if kind in ("small", "medium"):
        return {"small": 0.1, "medium": 2.0}[kind] * normal
    return normal * float(kind) / (features.abs().amax() * normal.abs().amax()).clamp(min=1e-12)


@dataclass(eq=False)
class Case:
    """Inputs, and what the reference makes of them in float64.

    Attributes:
        features: Feature map (B, D, H, W).
        embeddings: Entries (L, D).
        weights: Gradient that arrives at the results (B, L, D).
    """

    features: Tensor
    embeddings: Tensor
    weights: Tensor

    @cached_property
    def expected(self) -> list[Tensor]:
        double = Case(self.features.double(), self.embeddings.double(), self.weights.double())
        return double.run("reference")

    @property
    def largest_score(self) -> float:
        return float(self.features.double().abs().amax() * self.embeddings.double().abs().amax())

    def run(self, backend: str) -> list[Tensor]:
        """Values, gradient of the features and gradient of the embeddings."""
        inputs = self.features.clone().requires_grad_(), self.embeddings.clone().requires_grad_()
        values = semantic_guided_attention(*inputs, backend=backend)
        return [values.detach(), *torch.autograd.grad(values, inputs, self.weights)]

    def errors(self, backend: str, *, floor: float = 0.0) -> list[float]:
        """Greatest difference from the reference of each of the three, relative to its greatest expected entry.

        Both are measured on the natural scale of each: the largest feature, the largest weight, and largest feature squared times
        largest weight. Differences of 2e-13 there, and the spacing of numbers next to zero, do not count: the float64 reference
        itself loses as much (it takes the variance of constant features, which is 0, for 1e-13).

        Args:
            backend: The form.
            floor: What an expected entry counts at least, on its natural scale.
        """
        feature, weight = float(self.features.abs().amax()), float(self.weights.abs().amax())
        scales = (feature, weight, feature**2 * weight)
        found = []
        for received, expected, scale in zip(self.run(backend), self.expected, scales, strict=True):
            limits = torch.finfo(received.dtype)
            difference = (received.double() - expected).abs().amax() - 2e-13 * scale - limits.tiny * limits.eps
            size = max(float(expected.abs().amax()), floor * scale, 1e-300)
            found.append(float(difference.clamp(min=0)) / size)  # clamp keeps NaN, max() would hide it
        return found


@lru_cache(maxsize=4)  # the backends come one after another, and share a reference
def draw_case(
    features: str,
    embeddings: str,
    num_positions: int,
    num_labels: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    num_images: int = 2,
    scale: float = 1.0,
    centre: float = 0.0,
    seed: int = 0,
) -> Case:
    """A case of these kinds and sizes, rounded to the type; `scale` multiplies features, `centre` moves embeddings."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * draw_features(features, (num_images, dim, num_positions), generator)
    entries = draw_embeddings(embeddings, num_labels, drawn, generator)
    entries = entries + centre * entries.abs().amax()
    weights = torch.randn(num_images, num_labels, dim, generator=generator, dtype=torch.float64)
    height, width = SIZES.get(num_positions, (1, num_positions))
    return Case(drawn.view(num_images, dim, height, width).to(dtype), entries.to(dtype), weights.to(dtype))


@pytest.fixture(scope="session")
def draw() -> Callable[..., Case]:
    return draw_case


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN: an entry that a form forgets to write shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_and_fill(*args: Any, **kwargs: Any) -> Tensor:
            fresh = allocate(*args, **kwargs)
            return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

        return allocate_and_fill

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@dataclass
class Spy:
    """What was asked of the exact form: (rows of embeddings, channels) of every call."""

    attended: list[tuple[int, int]]
    differentiated: list[tuple[int, int]]


@pytest.fixture
def exact_calls(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy([], [])

    def noting(function: Callable[..., Any], calls: list[tuple[int, int]]) -> Callable[..., Any]:
        def call(values: Tensor, embeddings: Tensor, *rest: Tensor) -> Any:
            calls.append((len(embeddings), embeddings.shape[1]))
            return function(values, embeddings, *rest)

        return call

    monkeypatch.setattr(cpu, "attend", noting(cpu.attend, spy.attended))
    monkeypatch.setattr(cpu, "differentiate", noting(cpu.differentiate, spy.differentiated))
    return spy
