"""Semantic guided attention as a PyTorch operator: opaque to compilers, known to autograd, and with a form chosen at run time."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msrn.ops.semantic_attention import cpu, nodes
from msrn.ops.semantic_attention.common import accumulation_dtype, centred

# The form is chosen by looking at the data, which CUDA graphs cannot record.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


@torch.library.custom_op("msrn::semantic_guided_attention", mutates_args=(), tags=_TAGS)
def attend(features: Tensor, embeddings: Tensor, backend: str) -> Tensor:
    """Pooled features (B, L, D) of features (B, P, D) and embeddings (L, D), by the form of that name.

    In float32 (float64) whatever the features are: the backward pass needs them unrounded.
    """
    if len(features) == 0 or len(embeddings) == 0:
        return features.new_empty(len(features), len(embeddings), features.shape[2], dtype=accumulation_dtype(features))
    form = _form(backend, features, "attend")
    if form is None:
        return _triton().attend(_channels_innermost(features), embeddings)  # type: ignore[no-any-return]
    values, mean = centred(_channels_innermost(features))  # (B, P, D), (B, D)
    with torch.autocast(features.device.type, enabled=False):  # the caller's would round the matrix products inside
        pooled: Tensor = form(values, embeddings.detach().to(values.dtype))  # (B, L, D)
    return pooled.add_(mean[:, None])


@attend.register_fake
def _(features: Tensor, embeddings: Tensor, backend: str) -> Tensor:
    size = features.shape[0], embeddings.shape[0], features.shape[2]
    return features.new_empty(size, dtype=accumulation_dtype(features))


@torch.library.custom_op("msrn::semantic_guided_attention_backward", mutates_args=(), tags=_TAGS)
def differentiate(
    features: Tensor, embeddings: Tensor, pooled: Tensor, grad: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of features and embeddings."""
    if len(features) == 0 or len(embeddings) == 0:
        return torch.zeros_like(features), torch.zeros_like(embeddings)
    form = _form(backend, features, "differentiate")
    if form is None:
        grad_features, variance = _triton().differentiate(_channels_innermost(features), embeddings, pooled, grad)
    else:
        values, mean = centred(_channels_innermost(features))  # (B, P, D), (B, D)
        with torch.autocast(features.device.type, enabled=False):
            given = embeddings.to(values.dtype), pooled - mean[:, None], grad.contiguous()
            grad_features, variance = form(values, *given)
    return grad_features.to(features.dtype), (variance * grad).sum(dim=0).to(embeddings.dtype)


@differentiate.register_fake
def _(features: Tensor, embeddings: Tensor, pooled: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), embeddings.new_empty(embeddings.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    features, embeddings, backend = inputs
    ctx.save_for_backward(features, embeddings, output)
    ctx.backend = backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    grad_features, grad_embeddings = differentiate(*ctx.saved_tensors, grad, ctx.backend)
    return grad_features, grad_embeddings, None


attend.register_autograd(_backward, setup_context=_keep)


# As the exact form does it; nodes do less. An exponential counts 1, as a multiplication and an addition do.
@register_flop_formula(torch.ops.msrn.semantic_guided_attention)  # type: ignore[untyped-decorator]
def _forward_flops(features: torch.Size, embeddings: torch.Size, *_: Any, **__: Any) -> int:
    return 5 * features.numel() * embeddings[0]  # score, exponential, its sum, and a multiply-add into the weighted sum


@register_flop_formula(torch.ops.msrn.semantic_guided_attention_backward)  # type: ignore[untyped-decorator]
def _backward_flops(features: torch.Size, embeddings: torch.Size, *_: Any, **__: Any) -> int:
    return 11 * features.numel() * embeddings[0]  # score, exponential and sum anew, variance (4), two multiply-adds


def _channels_innermost(features: Tensor) -> Tensor:
    # As channels_last feature maps have them: every step over positions then reads whole rows.
    return features.detach().contiguous()


def _form(backend: str, features: Tensor, name: str) -> Callable[..., Any] | None:
    """The function of that name, for features less their mean; None for the fused kernels, which take features as they are."""
    exact = _exact(features)
    if backend in ("auto", "nodes"):
        return partial(getattr(nodes, name), exact=exact, force=backend == "nodes")
    function: Callable[..., Any] = getattr(cpu, name)
    return None if backend == "triton" else function


def _exact(features: Tensor) -> ModuleType:
    has_kernel = features.is_cuda and accumulation_dtype(features) == torch.float32 and find_spec("triton") is not None
    return _triton() if has_kernel else cpu


def exact_backend(features: Tensor) -> str:
    """Name of the exact form for these features."""
    return "cpu" if _exact(features) is cpu else "triton"


def _triton() -> ModuleType:
    try:
        return import_module("msrn.ops.semantic_attention.triton")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"backend='triton' needs the package {error.name}. Install it (pip install 'msrn[kernels]'), or use backend='auto'."
        ) from error
