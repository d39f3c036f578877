import copy
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from msrn.ops import semantic_guided_attention
from msrn.ops.semantic_attention import nodes

FORMS = ("cpu", "nodes", "auto")
ATTEND = torch.ops.msrn.semantic_guided_attention.default
DIFFERENTIATE = torch.ops.msrn.semantic_guided_attention_backward.default


class Pooled(nn.Module):
    """A projection, the attention of four labels, and a classifier."""

    def __init__(self, backend: str = "auto", *, dim: int = 5, num_labels: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.projection = nn.Conv2d(3, dim, kernel_size=1)
            self.embeddings = nn.Parameter(torch.randn(num_labels, dim))
            self.classifier = nn.Linear(dim, 1)
        self.backend = backend

    def forward(self, images: Tensor) -> Tensor:
        pooled = semantic_guided_attention(self.projection(images), self.embeddings, backend=self.backend)
        return self.classifier(pooled)[..., 0]


def draw_images(num_images: int = 2, *, size: tuple[int, int] = (4, 5)) -> Tensor:
    return torch.randn(num_images, 3, *size, generator=torch.Generator().manual_seed(num_images))


def gradients(module: nn.Module, images: Tensor) -> list[Tensor]:
    module.zero_grad()
    module(images).square().sum().backward()
    return [parameter.grad for parameter in module.parameters()]


def draw_operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Features, embeddings, results and the gradient of the results."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 6, 5), (4, 5), (2, 4, 5), (2, 4, 5)]
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("backend", FORMS)
class TestOperatorKeepsTheRules:
    """Schema, registration of autograd, shapes without data, and tracing with symbolic sizes."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_forward(self, backend: str, dtype: torch.dtype) -> None:
        features, embeddings, *_ = draw_operands(dtype=dtype)
        torch.library.opcheck(ATTEND, (features.requires_grad_(), embeddings.requires_grad_(), backend))

    def test_forward_of_mixed_types_and_strides(self, backend: str) -> None:
        features, embeddings, *_ = draw_operands()
        features = features.bfloat16().transpose(1, 2).contiguous().transpose(1, 2)
        assert not features.is_contiguous()
        torch.library.opcheck(ATTEND, (features.requires_grad_(), embeddings.requires_grad_(), backend))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_backward(self, backend: str, dtype: torch.dtype) -> None:
        torch.library.opcheck(DIFFERENTIATE, (*draw_operands(dtype=dtype), backend))

    def test_backward_of_mixed_types_and_strides(self, backend: str) -> None:
        features, embeddings, pooled, grad = draw_operands()
        turned = grad.transpose(0, 2).contiguous().transpose(0, 2)
        torch.library.opcheck(DIFFERENTIATE, (features.bfloat16(), embeddings, pooled, turned, backend))


@pytest.mark.parametrize("backend", FORMS)
def test_gradients_are_those_of_finite_differences(backend: str) -> None:
    features, embeddings, *_ = draw_operands(dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda f, e: ATTEND(f, e, backend), (features.requires_grad_(), (3 * embeddings).requires_grad_())
    )


# The checks of annotations, which only the tests switch on, cannot be traced.
@pytest.mark.usefixtures("typing_off")
class TestCompiled:
    def compile(self, module: nn.Module, engine: str, *, dynamic: bool | None = None) -> nn.Module:
        torch._dynamo.reset()
        return torch.compile(module, backend=engine, fullgraph=True, dynamic=dynamic)

    def check(self, engine: str, backend: str) -> None:
        module, images = Pooled(backend), draw_images()
        compiled = self.compile(module, engine)
        torch.testing.assert_close(compiled(images), module(images))
        torch.testing.assert_close(gradients(compiled, images), gradients(module, images))

    @pytest.mark.parametrize("backend", ["reference", *FORMS])
    def test_equals_eager_without_a_graph_break(self, backend: str) -> None:
        self.check("aot_eager", backend)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
    @pytest.mark.parametrize("backend", FORMS)
    def test_equals_eager_through_inductor(self, backend: str) -> None:
        self.check("inductor", backend)

    def test_batches_of_any_size_share_a_graph(self) -> None:
        module = Pooled()
        compiled = self.compile(module, "aot_eager", dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for num_images in (2, 3, 7):
                images = draw_images(num_images)
                torch.testing.assert_close(compiled(images), module(images))
                torch.testing.assert_close(gradients(compiled, images), gradients(module, images))

    def test_under_autocast(self) -> None:
        module, images = Pooled(), draw_images()
        compiled = self.compile(module, "aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            received, expected = compiled(images), module(images)
        assert received.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(received, expected)


@pytest.mark.usefixtures("typing_off")
class TestExported:
    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("backend", ["reference", *FORMS])
    def test_program_equals_the_module_for_any_batch(self, backend: str, strict: bool) -> None:
        module = Pooled(backend)
        shapes = {"images": {0: torch.export.Dim("num_images")}}
        program = torch.export.export(module, (draw_images(2),), dynamic_shapes=shapes, strict=strict)
        for num_images in (2, 5):
            images = draw_images(num_images)
            torch.testing.assert_close(program.module()(images), module(images))

    def test_program_survives_saving(self, tmp_path: Path) -> None:
        module, images = Pooled(), draw_images()
        torch.export.save(torch.export.export(module, (images,)), tmp_path / "pooled.pt2")
        torch.testing.assert_close(torch.export.load(tmp_path / "pooled.pt2").module()(images), module(images))

    # torch copies its own deprecated LeafSpec while it exports.
    @pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
    def test_onnx_of_the_reference_equals_eager(self, tmp_path: Path) -> None:
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed; it comes with msrn[export]")
        onnxruntime = pytest.importorskip(
            "onnxruntime", reason="onnxruntime is not installed; it comes with msrn[export]"
        )
        module = Pooled("reference").eval()
        shapes = {"images": {0: torch.export.Dim("num_images")}}
        path = tmp_path / "pooled.onnx"
        torch.onnx.export(module, (draw_images(2),), dynamo=True, dynamic_shapes=shapes, verbose=False).save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for num_images in (2, 5):
            images = draw_images(num_images)
            (received,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            torch.testing.assert_close(torch.from_numpy(received), module(images).detach())


@pytest.mark.parametrize("backend", FORMS)
class TestAutocast:
    def test_result_has_the_type_of_the_feature_map_and_gradients_that_of_the_parameters(self, backend: str) -> None:
        module = Pooled(backend)
        with torch.autocast("cpu", torch.bfloat16):
            feature_map = module.projection(draw_images())
            pooled = semantic_guided_attention(feature_map, module.embeddings, backend=backend)
        assert feature_map.dtype == pooled.dtype == torch.bfloat16
        pooled.float().square().sum().backward()
        assert module.embeddings.grad is not None
        assert module.embeddings.grad.dtype == module.projection.weight.grad.dtype == torch.float32

    def test_gradients_are_those_of_float32_to_rounding(self, backend: str) -> None:
        module, images = Pooled(backend), draw_images()
        expected = gradients(module, images)
        with torch.autocast("cpu", torch.bfloat16):
            received = gradients(module, images)
        for gradient, wanted in zip(received, expected, strict=True):
            assert float((gradient - wanted).abs().amax() / wanted.abs().amax()) <= 5 * torch.finfo(torch.bfloat16).eps

    def test_float32_inputs_are_computed_as_ever(self, backend: str, draw: Callable) -> None:
        case = draw("bell-shaped", "small", 784, 300, 3)  # "auto" takes nodes
        expected = case.run(backend)
        with torch.autocast("cpu", torch.bfloat16):
            received = case.run(backend)
        torch.testing.assert_close(received, expected)

    def test_trains(self, backend: str) -> None:
        module, images = Pooled(backend), draw_images(8)
        target = torch.rand(8, 4, generator=torch.Generator().manual_seed(1)).round()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(images)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("backend", ["reference", *FORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_without_data_shapes_and_types_are_right(backend: str, dtype: torch.dtype) -> None:
    features = torch.empty(2, 5, 7, 9, device="meta", dtype=dtype, requires_grad=True)
    embeddings = torch.empty(4, 5, device="meta", requires_grad=True)
    output = semantic_guided_attention(features, embeddings, backend=backend)
    output.sum().backward()
    for tensor, shape, of_type in [
        (output, (2, 4, 5), dtype),
        (features.grad, (2, 5, 7, 9), dtype),
        (embeddings.grad, (4, 5), torch.float32),
    ]:
        assert tensor.shape == shape
        assert tensor.dtype == of_type
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("backend", FORMS)
class TestModes:
    def test_inference_mode_changes_nothing(self, backend: str) -> None:
        module, images = Pooled(backend), draw_images()
        with torch.inference_mode():
            received = module(images)
        assert received.is_inference()
        torch.testing.assert_close(received.clone(), module(images).detach())

    def test_training_may_follow_inference(self, backend: str) -> None:
        nodes._cosine_transform.cache_clear()  # so that inference mode makes what is kept between calls
        module, images = Pooled(backend), draw_images()
        with torch.inference_mode():
            module(images)
        assert all(gradient.isfinite().all() for gradient in gradients(module, images))

    def test_without_gradients_nothing_is_kept(self, backend: str) -> None:
        module = Pooled(backend)
        with torch.no_grad():
            assert module(draw_images()).grad_fn is None
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: pytest.fail("saved"), lambda tensor: tensor):
            semantic_guided_attention(torch.randn(2, 5, 3, 3), torch.randn(4, 5), backend=backend)

    def test_a_second_derivative_is_refused(self, backend: str) -> None:
        features, embeddings, *_ = draw_operands()
        inputs = features.requires_grad_(), embeddings.requires_grad_()
        first = torch.autograd.grad(ATTEND(*inputs, backend).square().sum(), inputs, create_graph=True)
        for gradient in first:
            with pytest.raises(RuntimeError, match=r"semantic_guided_attention_backward.*no autograd formula"):
                gradient.sum().backward(retain_graph=True)

    def test_recomputed_activations_give_the_same_gradients(self, backend: str) -> None:
        module, images = Pooled(backend), draw_images()
        checkpointed = torch.utils.checkpoint.checkpoint(module, images, use_reentrant=False)
        module.zero_grad()
        checkpointed.square().sum().backward()
        received = [parameter.grad.clone() for parameter in module.parameters()]
        torch.testing.assert_close(received, gradients(module, images))


def test_a_copy_is_a_module_of_its_own() -> None:
    module, images = Pooled(), draw_images()
    keys = list(module.state_dict())
    twin = copy.deepcopy(module)
    torch.testing.assert_close(gradients(twin, images), gradients(module, images))
    before = module(images).detach()
    with torch.no_grad():
        twin.embeddings.add_(1)
    assert list(twin.state_dict()) == list(module.state_dict()) == keys
    torch.testing.assert_close(module(images).detach(), before)
    assert not twin(images).equal(before)


def test_works_on_inputs_left_as_they_are(draw: Callable) -> None:
    case = draw("offset", "1000", 63, 20, 5)
    before = [tensor.clone() for tensor in (case.features, case.embeddings, case.weights)]
    for backend in FORMS:
        case.run(backend)
    for tensor, kept in zip((case.features, case.embeddings, case.weights), before, strict=True):
        assert tensor.equal(kept)


WORKER = """
    import os, sys
    import torch
    import torch.distributed as distributed
    from torch import nn
    from msrn.ops import semantic_guided_attention

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.projection = nn.Conv2d(3, 5, kernel_size=1)
            self.embeddings = nn.Parameter(torch.randn(300, 5))

        def forward(self, images):
            return semantic_guided_attention(self.projection(images), self.embeddings)

    torch.set_num_threads(1)
    folder, rank = sys.argv[1], int(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = nn.parallel.DistributedDataParallel(Pooled())
    torch.manual_seed(1)
    images = torch.randn(4, 3, 14, 14)
    module(images[2 * rank : 2 * rank + 2]).square().mean().backward()
    torch.save([parameter.grad for parameter in module.parameters()], f"{folder}/{rank}.pt")
    if rank == 0:
        alone = Pooled()
        alone(images).square().mean().backward()
        torch.save([parameter.grad for parameter in alone.parameters()], f"{folder}/alone.pt")
    distributed.barrier()
    distributed.destroy_process_group()
"""


def test_two_processes_average_to_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0", "1", "alone"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone)
