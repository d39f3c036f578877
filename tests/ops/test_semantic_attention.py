from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from msrn.ops import semantic_guided_attention

FORMS = ("cpu", "nodes", "auto")
FEATURES = ("bell-shaped", "sparse", "two clusters", "offset", "one-hot", "constant", "heavy-tailed")
EMBEDDINGS = ("small", "medium", "identical")
SHAPES = [  # positions, labels, channels: no multiples of anything; in the last two "auto" takes nodes
    (1, 20, 3),
    (49, 1, 70),
    (63, 84, 70),
    (196, 20, 5),
    (784, 1000, 2),
    (3136, 84, 3),
]
# Every kind of features at every shape, every kind of embeddings with each of both.
CASES = [
    (features, EMBEDDINGS[(row + column) % 3], *shape)
    for row, shape in enumerate(SHAPES)
    for column, features in enumerate(FEATURES)
]
FLOAT64 = {"cpu": 1e-12, "nodes": 1e-10, "auto": 1e-10}
LARGE_SCORES = [(784, 300, 2), (63, 84, 5)]


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


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("chosen", CASES, ids=str)
def test_float32_equals_the_reference(draw: Callable, chosen: tuple, backend: str) -> None:
    assert max(draw(*chosen).errors(backend)) <= 1e-5


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("chosen", CASES[::4], ids=str)
def test_float64_equals_the_reference(draw: Callable, chosen: tuple, backend: str) -> None:
    assert max(draw(*chosen, dtype=torch.float64).errors(backend)) <= FLOAT64[backend]


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chosen", CASES[::4], ids=str)
def test_half_precision_loses_only_the_rounding_of_its_results(
    draw: Callable, chosen: tuple, dtype: torch.dtype, backend: str
) -> None:
    assert max(draw(*chosen, dtype=dtype).errors(backend)) <= torch.finfo(dtype).eps


# A score of 1,000 has an error of up to 3e-5 in float32, half the spacing of numbers there, whatever the form: the reference in
# float32 has it too. Weights move by as much, results by twice as much; gradients hold a second factor, (f - o) e, rounded alike.
SCORE_ROUNDING = 4


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", [1_000, 10_000])
@pytest.mark.parametrize("sizes", LARGE_SCORES, ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_large_scores_are_right_to_their_rounding(
    draw: Callable, features: str, sizes: tuple, score: int, dtype: torch.dtype, backend: str
) -> None:
    case = draw(features, str(score), *sizes, dtype=dtype)
    computed_in = torch.promote_types(dtype, torch.float32)
    own = FLOAT64[backend] if dtype == torch.float64 else max(1e-5, torch.finfo(dtype).eps)
    assert max(case.errors(backend)) <= own + SCORE_ROUNDING * torch.finfo(computed_in).eps * case.largest_score


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("chosen", CASES[1::5], ids=str)
def test_every_entry_is_written(draw: Callable, chosen: tuple, backend: str) -> None:
    assert max(draw(*chosen).errors(backend)) <= 1e-5


@pytest.mark.parametrize("backend", FORMS)
def test_channels_of_unlike_size_are_each_right(draw: Callable, backend: str) -> None:
    case = draw("bell-shaped", "medium", 784, 100, 7)
    sizes = 10.0 ** torch.arange(-3, 4)
    unlike = type(case)(case.features * sizes[:, None, None], case.embeddings / sizes, case.weights)
    for received, expected, dims in zip(unlike.run(backend), unlike.expected, [(0, 1), (0, 2, 3), 0], strict=True):
        assert ((received - expected).abs().amax(dims) <= 1e-5 * expected.abs().amax(dims)).all()


@pytest.mark.parametrize("backend", ["reference", *FORMS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_image_and_channel(draw: Callable, value: float, backend: str) -> None:
    case = draw("bell-shaped", "1000", 63, 84, 5)
    broken = case.features.clone()
    broken[1, 2, 3, 4] = value
    values, grad_features, grad_embeddings = type(case)(broken, case.embeddings, case.weights).run(backend)
    assert values[1, :, 2].isnan().all()
    assert grad_features[1, 2].isnan().all()
    assert grad_embeddings[:, 2].isnan().all()
    values[1, :, 2], grad_features[1, 2], grad_embeddings[:, 2] = 0, 0, 0
    clean = [expected.clone() for expected in case.expected]
    clean[0][1, :, 2], clean[1][1, 2], clean[2][:, 2] = 0, 0, 0
    for received, expected in zip((values, grad_features, grad_embeddings), clean, strict=True):
        error = float((received - expected).abs().max() / expected.abs().max())
        assert error <= SCORE_ROUNDING * torch.finfo(torch.float32).eps * 1000


@pytest.mark.parametrize("backend", ["cpu", "reference", "auto", "nodes"])
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

    @pytest.mark.parametrize("entry", [100.0, 1000.0])
    def test_scores_of_thousands_do_not_overflow(self, backend: str, entry: float) -> None:
        features = torch.tensor([[[[-10.0, 0.0, 10.0]]]], requires_grad=True)
        embeddings = torch.tensor([[entry], [-entry]], requires_grad=True)
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

    def test_one_gradient_for_all_labels_may_arrive_expanded(self, backend: str) -> None:
        features, embeddings = make_case((7, 9), 20)
        summed = semantic_guided_attention(features, embeddings, backend=backend).sum()
        weighed = semantic_guided_attention(features, embeddings, backend=backend) * torch.ones(2, 20, 5)
        for received, wanted in zip(
            torch.autograd.grad(summed, (features, embeddings)),
            torch.autograd.grad(weighed.sum(), (features, embeddings)),
            strict=True,
        ):
            torch.testing.assert_close(received, wanted)

    def test_only_one_input_may_need_gradients(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2)
        semantic_guided_attention(features.detach(), embeddings, backend=backend).sum().backward()
        semantic_guided_attention(features, embeddings.detach(), backend=backend).sum().backward()
        assert features.grad is not None
        assert embeddings.grad is not None

    @pytest.mark.parametrize("kept", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_results_take_the_type_of_the_features_and_gradients_that_of_their_input(
        self, backend: str, given: torch.dtype, kept: torch.dtype
    ) -> None:
        features, embeddings = (tensor.detach() for tensor in make_case((3, 3), 2, dtype=torch.float64))
        features, embeddings = features.to(given).requires_grad_(), embeddings.to(kept).requires_grad_()
        values, grad_features, grad_embeddings = run(features, embeddings, backend)
        assert values.dtype == grad_features.dtype == given
        assert grad_embeddings.dtype == kept
        expected = semantic_guided_attention(features.double(), embeddings.double(), backend="reference")
        torch.testing.assert_close(values.double(), expected, rtol=0.02, atol=0.02)

    def test_empty_batch_gives_an_empty_result(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2)
        output = semantic_guided_attention(features[:0], embeddings, backend=backend)
        assert output.shape == (0, 2, 5)
        output.sum().backward()
        assert embeddings.grad is not None
        assert embeddings.grad.tolist() == [[0.0] * 5] * 2

    def test_no_labels_give_an_empty_result(self, backend: str) -> None:
        features, embeddings = make_case((3, 3), 2)
        assert semantic_guided_attention(features, embeddings[:0], backend=backend).shape == (2, 0, 5)

    def test_labels_stand_in_the_order_given(self, backend: str) -> None:
        features, embeddings = make_case((7, 9), 20)
        order = torch.arange(19, -1, -1)
        output = semantic_guided_attention(features, embeddings, backend=backend)
        turned = semantic_guided_attention(features, embeddings[order], backend=backend)
        torch.testing.assert_close(turned, output[:, order])


def saved_sizes(backend: str, num_labels: int) -> list[int]:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        semantic_guided_attention(*make_case((14, 14), num_labels), backend=backend)
    return sizes


def test_the_reference_saves_labels_by_channels_by_positions() -> None:
    assert max(saved_sizes("reference", 20)) == 2 * 20 * 5 * 196  # B · L · D · P


@pytest.mark.parametrize("num_labels", [20, 300])  # of 300, "auto" takes nodes
@pytest.mark.parametrize("backend", FORMS)
def test_a_form_saves_its_inputs_and_results_only(backend: str, num_labels: int) -> None:
    positions, inputs, results = 2 * 196 * 5, num_labels * 5, 2 * num_labels * 5
    assert sum(saved_sizes(backend, num_labels)) <= positions + inputs + results


@pytest.mark.parametrize("shape", [(1, 5, 0, 3), (1, 5, 3, 0)])
def test_empty_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the feature map is empty: shape \(1, 5, .*\)\. Use larger images"):
        semantic_guided_attention(torch.zeros(shape), torch.zeros(2, 5))


@pytest.mark.usefixtures("typing_off")
def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend is one of auto, reference, cpu, triton, nodes, got 'cuda'"):
        semantic_guided_attention(torch.zeros(1, 5, 2, 2), torch.zeros(2, 5), backend="cuda")


@pytest.mark.usefixtures("typing_off")
def test_unlike_widths() -> None:
    with pytest.raises(ValueError, match=r"has 5 channels, the embeddings are 4 wide\. Project the features"):
        semantic_guided_attention(torch.zeros(1, 5, 2, 2), torch.zeros(2, 4))
