import pytest
import torch
from torch import Tensor

from msrn.ops import semantic_guided_attention

SIZES = [(1, 1), (7, 7), (7, 9), (14, 14)]  # P = 1, 49, 63, 196


def make_case(
    size: tuple[int, int], num_labels: int, *, dim: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_labels + size[0] * size[1])
    features = torch.randn(2, dim, *size, generator=generator, dtype=dtype)
    embeddings = 2 * torch.randn(num_labels, dim, generator=generator, dtype=dtype)
    return features.requires_grad_(), embeddings.requires_grad_()


def run(features: Tensor, embeddings: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values and both gradients, under a weight of its own for every output."""
    output = semantic_guided_attention(features, embeddings, backend=backend)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return (output.detach(), *torch.autograd.grad((output * weights).sum(), (features, embeddings)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("num_labels", [1, 20, 84])
@pytest.mark.parametrize("size", SIZES)
def test_cpu_equals_the_reference(size, num_labels: int, dtype: torch.dtype, tolerance: float) -> None:
    case = make_case(size, num_labels, dtype=dtype)
    for received, expected in zip(run(*case, "cpu"), run(*case, "reference"), strict=True):
        assert (received - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("backend", ["cpu", "reference", "auto"])
class TestEveryBackend:
    def test_zero_embedding_averages(self, backend: str) -> None:
        features, _ = make_case((7, 9), 1)
        output = semantic_guided_attention(features, torch.zeros(3, 5, dtype=torch.float64), backend=backend)
        torch.testing.assert_close(output, features.mean(dim=(2, 3))[:, None].expand(-1, 3, -1))

    def test_large_embedding_takes_the_maximum_and_large_negative_the_minimum(self, backend: str) -> None:
        features, _ = make_case((7, 9), 1)
        embeddings = torch.tensor([[1e4], [-1e4]], dtype=torch.float64).expand(2, 5)
        output = semantic_guided_attention(features, embeddings, backend=backend)
        torch.testing.assert_close(output[:, 0], features.amax(dim=(2, 3)))
        torch.testing.assert_close(output[:, 1], features.amin(dim=(2, 3)))

    def test_scores_of_a_thousand_do_not_overflow(self, backend: str) -> None:
        features = torch.tensor([[[[-10.0, 0.0, 10.0]]]], requires_grad=True)
        embeddings = torch.tensor([[100.0], [-100.0]], requires_grad=True)
        values, *gradients = run(features, embeddings, backend)
        assert values.flatten().tolist() == [10.0, -10.0]
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_result_lies_between_least_and_greatest_of_its_channel(self, backend: str) -> None:
        features, embeddings = make_case((7, 7), 20)
        output = semantic_guided_attention(features, embeddings, backend=backend)
        assert (output <= features.amax(dim=(2, 3))[:, None] + 1e-12).all()
        assert (output >= features.amin(dim=(2, 3))[:, None] - 1e-12).all()

    def test_gradients_are_those_of_finite_differences(self, backend: str) -> None:
        features, embeddings = make_case((2, 3), 4, dim=3)
        torch.autograd.gradcheck(lambda f, e: semantic_guided_attention(f, e, backend=backend), (features, embeddings))

    def test_memory_layout_does_not_matter(self, backend: str) -> None:
        features, embeddings = make_case((7, 9), 20)
        expected = run(features, embeddings, backend)
        channels_last = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        strided = torch.stack([features.detach()] * 2, dim=-1)[..., 0].requires_grad_()
        transposed = embeddings.detach().T.contiguous().T.requires_grad_()
        assert not any(tensor.is_contiguous() for tensor in (strided, transposed, channels_last))
        for case in ((channels_last, embeddings), (strided, transposed)):
            for received, wanted in zip(run(*case, backend), expected, strict=True):
                torch.testing.assert_close(received, wanted)

    def test_only_one_input_may_need_gradients(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2)
        semantic_guided_attention(features.detach(), embeddings, backend=backend).sum().backward()
        semantic_guided_attention(features, embeddings.detach(), backend=backend).sum().backward()
        assert features.grad is not None
        assert embeddings.grad is not None

    def test_embeddings_take_the_type_of_the_features(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2, dtype=torch.float32)
        output = semantic_guided_attention(features, embeddings.double(), backend=backend)
        assert output.dtype == torch.float32

    def test_empty_batch_gives_an_empty_result(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2)
        assert semantic_guided_attention(features[:0], embeddings, backend=backend).shape == (0, 2, 5)


def saved_sizes(backend: str) -> list[int]:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        semantic_guided_attention(*make_case((7, 9), 20), backend=backend)
    return sizes


def test_nothing_of_size_labels_by_channels_by_positions_is_saved() -> None:
    largest = 2 * 20 * 5 * 63  # B · L · D · P
    assert max(saved_sizes("reference")) == largest
    assert max(saved_sizes("cpu")) <= max(2 * 5 * 63, 2 * 20 * 5)


@pytest.mark.parametrize("shape", [(1, 5, 0, 3), (1, 5, 3, 0)])
def test_empty_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the feature map is empty: shape \(1, 5, .*\)\. Use larger images"):
        semantic_guided_attention(torch.zeros(shape), torch.zeros(2, 5))


@pytest.mark.usefixtures("typing_off")
def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend is one of auto, reference, cpu, triton, nodes, got 'cuda'"):
        semantic_guided_attention(torch.zeros(1, 5, 2, 2), torch.zeros(2, 5), backend="cuda")
