"""The fused kernels: in Triton's interpreter anywhere, compiled where there is a GPU (-m gpu), and compiled for GPUs without."""

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msrn.ops.semantic_attention.reference import attend_reference

pytest.importorskip("triton", reason="triton is not installed: pip install 'msrn[kernels]'")


def load(*, interpreted: bool) -> ModuleType:
    """The module anew, with kernels for the interpreter or the compiler; what other tests import stays as it is."""
    spec = importlib.util.find_spec("msrn.ops.semantic_attention.triton")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpreted)))  # read when a kernel is defined
        spec.loader.exec_module(module)
    return module


class Kernels(NamedTuple):
    """The module, and the device it runs on."""

    module: ModuleType
    device: str

    def attend(self, features: Tensor, embeddings: Tensor) -> Tensor:
        result: Tensor = self.module.attend(features.to(self.device), embeddings.to(self.device))
        return result.cpu()

    def differentiate(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        grad_features, variance = self.module.differentiate(*(tensor.to(self.device) for tensor in inputs))
        return grad_features.cpu(), variance.cpu()


has_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", id="interpreted"),
        pytest.param("cuda", id="compiled", marks=[pytest.mark.gpu, has_gpu]),
    ],
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(load(interpreted=request.param == "cpu"), request.param)


@pytest.fixture(autouse=True, scope="module")
def poison() -> Iterator[None]:
    """Fresh memory holds NaN, so that an entry nobody wrote is noticed."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def make_case(
    num_positions: int, num_labels: int, *, dim: int = 5, num_images: int = 2, scale: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, embeddings with entries of about the size of the scale, and the gradient of the result."""
    generator = torch.Generator().manual_seed(num_positions + 1000 * num_labels + dim)
    features = torch.randn(num_images, num_positions, dim, generator=generator)
    embeddings = scale * torch.randn(num_labels, dim, generator=generator)
    return features, embeddings, torch.randn(num_images, num_labels, dim, generator=generator)


def run_reference(features: Tensor, embeddings: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result, gradient of the features and gradient of the embeddings, of the plain formulation in float64."""
    features, embeddings = features.double().requires_grad_(), embeddings.double().requires_grad_()
    pooled = attend_reference(features, embeddings)
    return pooled.detach(), *torch.autograd.grad(pooled, (features, embeddings), grad.double())


def run(kernels: Kernels, features: Tensor, embeddings: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the kernels; the result comes to the backward pass in the features' type, as autograd keeps it."""
    pooled = kernels.attend(features, embeddings)
    grad_features, variance = kernels.differentiate(features, embeddings, pooled.to(features.dtype), grad)
    assert {pooled.dtype, grad_features.dtype, variance.dtype} == {torch.float32}
    return pooled, grad_features, (grad * variance).sum(dim=0)


def assert_equals_reference(
    kernels: Kernels, features: Tensor, embeddings: Tensor, grad: Tensor, *, floor: float = 1e-6
) -> None:
    """Within 1e-5 of the greatest entry of the channel, or of the floor where all its entries are less."""
    received, expected = run(kernels, features, embeddings, grad), run_reference(features, embeddings, grad)
    for ours, truth in zip(received, expected, strict=True):
        assert ours.shape == truth.shape
        error, size = ((ours - truth).flatten(0, -2).abs().amax(dim=0), truth.flatten(0, -2).abs().amax(dim=0))  # (D,)
        assert (error <= 1e-5 * size.clamp(min=floor)).all()


@pytest.mark.parametrize("num_labels", [1, 20, 84])
@pytest.mark.parametrize("num_positions", [1, 49, 63, 196])
def test_equals_the_reference(kernels: Kernels, num_positions: int, num_labels: int) -> None:
    assert_equals_reference(kernels, *make_case(num_positions, num_labels))


@pytest.mark.parametrize("dim", [1, 64, 70, 130])
def test_any_width(kernels: Kernels, dim: int) -> None:
    assert_equals_reference(kernels, *make_case(49, 20, dim=dim))


def test_many_positions(kernels: Kernels) -> None:
    """Sums of thousands of terms, also of equal ones and beside a single large one, whose rounding errors do not average out."""
    features, embeddings, grad = make_case(3136, 2, dim=5, num_images=1)
    features[..., 1].sub_(0.5).relu_()
    features[..., 2] = 0.7
    features[..., 3] = torch.arange(3136) == 7
    features[..., 4] /= 100
    features[:, 9, 4] = -5
    assert_equals_reference(kernels, features, embeddings, grad)


@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_any_floating_type_is_accumulated_in_float32(kernels: Kernels, dtype: torch.dtype, other: torch.dtype) -> None:
    features, embeddings, grad = make_case(63, 20)
    assert_equals_reference(kernels, features.to(dtype), embeddings.to(other), grad.to(other))


def test_rounding_of_the_pooled_features_does_not_reach_the_gradients(kernels: Kernels) -> None:
    features, embeddings, grad = make_case(63, 20)
    features += 3
    pooled = kernels.attend(features, embeddings).bfloat16()  # wrong by up to 1/64
    grad_features, variance = kernels.differentiate(features, embeddings, pooled, grad)
    _, expected_features, expected_embeddings = run_reference(features, embeddings, grad)
    assert (grad_features - expected_features).abs().max() <= 1e-5 * expected_features.abs().max()
    assert ((grad * variance).sum(dim=0) - expected_embeddings).abs().max() <= 1e-5 * expected_embeddings.abs().max()


def test_features_far_from_zero(kernels: Kernels) -> None:
    features, embeddings, grad = make_case(63, 20)
    assert_equals_reference(kernels, features + 100, embeddings, grad)


@pytest.mark.parametrize("scale", [300.0, 3000.0])  # scores of up to 1,000 and 10,000
def test_large_scores(kernels: Kernels, scale: float) -> None:
    features, embeddings, grad = make_case(63, 20, scale=scale)
    assert (features[:, None] * embeddings[None, :, None]).abs().max() > 3 * scale
    assert_equals_reference(kernels, features, embeddings, grad, floor=1.0)


@pytest.mark.parametrize("size", [100.0, 1000.0, 1e30])
def test_large_scores_choose_the_extremes(kernels: Kernels, size: float) -> None:
    features = torch.tensor([-10.0, 0.0, 10.0])[None, :, None]
    embeddings = torch.tensor([[size], [-size]])
    grad = torch.tensor([3.0, 7.0])[None, :, None]
    pooled, grad_features, grad_embeddings = run(kernels, features, embeddings, grad)
    assert pooled.flatten().tolist() == [10.0, -10.0]
    assert grad_features.flatten().tolist() == [7.0, 0.0, 3.0]
    assert grad_embeddings.flatten().tolist() == [0.0, 0.0]


def test_equal_extremes_share_the_weight(kernels: Kernels) -> None:
    features = torch.tensor([10.0, -10.0, 10.0])[None, :, None]
    pooled, grad_features, _ = run(kernels, features, torch.tensor([[1000.0]]), torch.ones(1, 1, 1))
    assert pooled.item() == 10.0
    assert grad_features.flatten().tolist() == [0.5, 0.0, 0.5]


def test_zero_embedding_averages(kernels: Kernels) -> None:
    features, _, grad = make_case(63, 3)
    embeddings = torch.zeros(3, 5)
    torch.testing.assert_close(
        kernels.attend(features, embeddings), features.mean(dim=1, keepdim=True).expand(-1, 3, -1)
    )
    assert_equals_reference(kernels, features, embeddings, grad)


def test_memory_layout_does_not_matter(kernels: Kernels) -> None:
    features, embeddings, _ = make_case(63, 20)
    grad = torch.ones(1).expand(2, 20, 5)
    expected = run(kernels, features, embeddings, grad.contiguous())
    feature_map = features.mT.reshape(2, 5, 7, 9).contiguous()  # NCHW: positions innermost
    strided = torch.stack([features] * 2, dim=-1)[..., 0]
    transposed = embeddings.T.contiguous().T
    for case in (feature_map.flatten(2).mT, strided):
        assert not case.is_contiguous()
        for received, wanted in zip(run(kernels, case, transposed, grad), expected, strict=True):
            assert torch.equal(received, wanted)


def test_empty_batch_gives_empty_results(kernels: Kernels) -> None:
    features, embeddings, grad = make_case(9, 2, num_images=0)
    pooled, grad_features, grad_embeddings = run(kernels, features, embeddings, grad)
    assert (pooled.shape, grad_features.shape) == ((0, 2, 5), (0, 9, 5))
    assert grad_embeddings.tolist() == torch.zeros(2, 5).tolist()


@settings(max_examples=15, deadline=None)
@given(
    num_images=st.integers(1, 3),
    num_positions=st.integers(1, 35),
    num_labels=st.integers(1, 35),
    dim=st.integers(1, 67),
    scale=st.floats(0, 30),
)
def test_any_shape(
    kernels: Kernels, num_images: int, num_positions: int, num_labels: int, dim: int, scale: float
) -> None:
    features, embeddings, grad = make_case(num_positions, num_labels, dim=dim, num_images=num_images, scale=scale)
    assert_equals_reference(kernels, features, embeddings, grad, floor=1.0)
    pooled = kernels.attend(features, embeddings)
    assert (pooled <= features.amax(dim=1, keepdim=True) + 1e-6).all()
    assert (pooled >= features.amin(dim=1, keepdim=True) - 1e-6).all()


def test_float64_is_refused(kernels: Kernels) -> None:
    features, embeddings, grad = make_case(9, 2)
    message = r"takes float32, bfloat16 or float16 features, got torch\.float64\. Use backend='cpu'"
    with pytest.raises(ValueError, match=message):
        kernels.attend(features.double(), embeddings)
    with pytest.raises(ValueError, match=message):
        kernels.differentiate(features.double(), embeddings, grad, grad)


def test_compiled_kernels_refuse_features_on_the_cpu() -> None:
    features, embeddings, _ = make_case(9, 2)
    with pytest.raises(ValueError, match=r"runs on CUDA devices, the features are on 'cpu'\. .* backend='auto'"):
        load(interpreted=False).attend(features, embeddings)


@pytest.mark.parametrize(("architecture", "dtype"), [(80, "fp32"), (90, "bf16"), (90, "fp16")])
@pytest.mark.parametrize("name", ["_attend_kernel", "_variance_kernel", "_features_kernel"])
def test_kernels_compile_for_gpus_without_one(name: str, architecture: int, dtype: str, tmp_path, monkeypatch) -> None:
    """The interpreter takes more than the compiler does. No shared memory: rows go straight into registers."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = load(interpreted=False)
    kernel, options = getattr(module, name), dict(module._LAUNCH)
    constants = {"ROWS": 16, "CHANNELS": options.pop("CHANNELS")}
    signature = dict.fromkeys(kernel.arg_names, "*fp32")
    signature |= dict.fromkeys({"features", "least", "greatest", "pooled", "grad"} & signature.keys(), f"*{dtype}")
    signature |= dict.fromkeys(module._SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = compile_kernel(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared == 0
