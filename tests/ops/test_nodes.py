import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from scipy.fft import dct
from scipy.special import ive

from msrn.ops import semantic_guided_attention
from msrn.ops.semantic_attention import cpu, nodes

FINEST = nodes.NUM_NODES[-1]


class TestChebyshev:
    def test_polynomials_are_those_of_numpy(self) -> None:
        offsets = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
        received = torch.stack(list(nodes.chebyshev_polynomials(offsets, FINEST)))[..., 0]
        np.testing.assert_allclose(received.T, chebyshev.chebvander(offsets[:, 0].numpy(), FINEST - 1), atol=1e-12)

    def test_polynomials_have_gradients_at_the_ends(self) -> None:
        offsets = torch.tensor([[-1.0], [1.0]], dtype=torch.float64, requires_grad=True)
        for order, polynomial in enumerate(nodes.chebyshev_polynomials(offsets, 6)):
            if order > 0:
                (slope,) = torch.autograd.grad(polynomial.sum(), offsets, retain_graph=True)
                assert slope.flatten().tolist() == pytest.approx([(-1) ** (order + 1) * order**2, order**2])

    @pytest.mark.parametrize("count", nodes.NUM_NODES)
    def test_angles_are_those_of_numpys_nodes(self, count: int) -> None:
        cosines = [math.cos(angle) for angle in nodes.chebyshev_angles(count)]
        np.testing.assert_allclose(cosines[::-1], chebyshev.chebpts1(count), atol=1e-15)

    @pytest.mark.parametrize("count", nodes.NUM_NODES)
    def test_transform_is_scipys_cosine_transform(self, count: int) -> None:
        results = torch.randn(2, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
        expected = dct(results.numpy(), type=2, axis=1) / count
        expected[:, 0] /= 2
        np.testing.assert_allclose(nodes.cosine_transform(results) @ results, expected, atol=1e-14)

    def test_transform_gives_the_coefficients_of_numpys_interpolation(self) -> None:
        points = torch.tensor([math.cos(angle) for angle in nodes.chebyshev_angles(16)], dtype=torch.float64)
        received = nodes.cosine_transform(points[None, :, None]) @ points.exp()
        np.testing.assert_allclose(received, chebyshev.chebinterpolate(np.exp, 15), atol=1e-14)


class TestRange:
    def test_nodes_lie_within_the_range_and_offsets_between_minus_one_and_one(self) -> None:
        embeddings = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-30, 33, 9)
        span = nodes.Range.of(embeddings)
        offsets = span.offsets(embeddings)
        assert offsets.amin(dim=0).tolist() == [-1.0] * 7
        assert offsets.amax(dim=0).tolist() == [1.0] * 7
        slack = 1e-6 * embeddings.abs().amax(dim=0)
        assert (span.nodes(16) <= embeddings.amax(dim=0) + slack).all()
        assert (span.nodes(16) >= embeddings.amin(dim=0) - slack).all()

    def test_equal_entries_have_no_width(self) -> None:
        embeddings = torch.tensor([[0.1, 0.0, -3e30]]).expand(4, 3)
        span = nodes.Range.of(embeddings)
        assert span.half_width.tolist() == [0.0, 0.0, 0.0]
        assert span.nodes(8).equal(embeddings[:1].expand(8, 3))
        assert span.offsets(embeddings).equal(torch.zeros(4, 3))


@pytest.mark.parametrize(("dtype", "rest"), [(torch.float32, 2e-7), (torch.float64, 1e-13)])
def test_reach_is_where_two_nodes_fewer_resolve_the_exponential(dtype: torch.dtype, rest: float) -> None:
    # exp(z t) = I_0(z) + 2 sum of I_m(z) T_m(t), and ive(m, z) = I_m(z) exp(-z); table entries have three decimals.
    for count, reach in zip(nodes.NUM_NODES, nodes._REACH[dtype], strict=True):
        assert 2 * ive(count - 2, reach - 1e-3) < rest < 2 * ive(count - 2, reach + 1e-3)


class TestPays:
    GIVEN = {"num_nodes": 16, "num_images": 8, "num_positions": 784, "num_rows": 300}

    def test_a_case_of_each_kind(self) -> None:
        assert nodes.pays(**self.GIVEN)
        assert not nodes.pays(**self.GIVEN | {"num_rows": 16})  # as many labels as nodes
        assert not nodes.pays(**self.GIVEN | {"num_positions": 4})  # interpolating costs as much as positions do

    @settings(max_examples=200, deadline=None)
    @given(
        num_nodes=st.sampled_from(nodes.NUM_NODES),
        num_images=st.integers(1, 256),
        num_positions=st.integers(1, 20_000),
        num_rows=st.integers(1, 10_000),
        factor=st.integers(2, 10),
    )
    def test_fewer_nodes_more_positions_and_more_labels_pay_too(self, factor: int, **sizes: int) -> None:
        if nodes.pays(**sizes):
            assert nodes.pays(**sizes | {"num_nodes": sizes["num_nodes"] // 2})
            assert nodes.pays(**sizes | {"num_positions": factor * sizes["num_positions"]})
            assert nodes.pays(**sizes | {"num_rows": factor * sizes["num_rows"]})

    def test_never_pays_for_fewer_labels_than_nodes(self) -> None:
        sizes = {"num_images": 64, "num_positions": 100_000}
        assert not any(
            nodes.pays(count, num_rows=rows, **sizes) for count in nodes.NUM_NODES for rows in range(1, count + 1)
        )


class TestWhereNodesResolve:
    @pytest.mark.parametrize("backend", ["nodes", "auto"])
    @pytest.mark.parametrize("features", ["bell-shaped", "sparse", "offset", "one-hot"])
    def test_few_rows_are_asked_of_the_exact_form(
        self, draw: Callable, exact_calls, features: str, backend: str
    ) -> None:
        case = draw(features, "small", 784, 1000, 3)
        assert max(case.errors(backend)) <= 1e-5
        for calls in (exact_calls.attended, exact_calls.differentiated):
            assert 0 < sum(rows * channels for rows, channels in calls) <= 3 * 100

    def test_identical_labels_need_the_fewest_nodes(self, draw: Callable, exact_calls) -> None:
        case = draw("bell-shaped", "identical", 784, 1000, 3)
        assert max(case.errors("nodes")) <= 1e-5
        assert {rows for rows, _ in exact_calls.attended + exact_calls.differentiated} == {nodes.NUM_NODES[0]}

    def test_wider_ranges_take_more_nodes(self, draw: Callable, exact_calls) -> None:
        asked = []
        for score in ("0.1", "1", "4", "16"):
            exact_calls.attended.clear()
            draw("bell-shaped", score, 784, 1000, 3).run("nodes")
            asked.append(max(rows for rows, _ in exact_calls.attended))
        assert asked == sorted(asked)
        assert asked[0] < asked[-1] <= FINEST

    def test_every_image_has_its_own_coefficients(self, draw: Callable) -> None:
        case = draw("bell-shaped", "small", 196, 84, 5, num_images=3)
        together = semantic_guided_attention(case.features, case.embeddings, backend="nodes")
        for image, expected in zip(case.features, together, strict=True):
            alone = semantic_guided_attention(image[None], case.embeddings, backend="nodes")
            torch.testing.assert_close(alone[0], expected)

    def test_thousands_of_labels(self, draw: Callable, exact_calls) -> None:
        case = draw("bell-shaped", "small", 49, 9_605, 33)  # more than one block of labels
        results = case.run("nodes")
        assert max(rows for rows, _ in exact_calls.attended + exact_calls.differentiated) <= FINEST
        for received, expected in zip(results, case.run("cpu"), strict=True):
            assert float((received - expected).abs().amax() / expected.abs().amax()) <= 1e-5


class TestWhereNodesDoNotResolve:
    @pytest.mark.parametrize("backend", ["nodes", "auto"])
    def test_two_sharp_clusters_far_apart_take_the_exact_form(self, draw: Callable, exact_calls, backend: str) -> None:
        case = draw("two clusters", "1000", 196, 300, 3)
        received = case.run(backend)
        assert exact_calls.attended == exact_calls.differentiated == [(300, 3)]
        for value, expected in zip(received, case.run("cpu"), strict=True):
            assert value.equal(expected)

    def test_a_channel_whose_coefficients_do_not_vanish_gets_more_nodes(self, draw: Callable, exact_calls) -> None:
        # The entries are within the reach of a few nodes, but o is a steep tanh.
        case = draw("two clusters", "5", 196, 300, 3)
        semantic_guided_attention(case.features, case.embeddings, backend="nodes")
        rows = [rows for rows, _ in exact_calls.attended]
        assert rows == sorted(set(rows))
        assert len(rows) > 1
        assert max(case.errors("nodes")) <= 1e-5

    @pytest.mark.parametrize(
        ("num_low", "least", "greatest"), [(10, 1.082, 62.627), (3, 0.599, 58.179), (48, 2.549, 35.334)]
    )
    def test_a_step_near_the_end_of_the_range_is_noticed(self, num_low: int, least: float, greatest: float) -> None:
        # One position is high: o steps from -1 to 1 at e = log(num_low) / 2. The coefficients of a step near the end of the range
        # swell and fade slowly, and a few in a row may vanish long before all do.
        features = torch.tensor([-1.0] * num_low + [1.0])[None, None, None]
        embeddings = torch.linspace(least, greatest, 400)[:, None]
        received = semantic_guided_attention(features, embeddings, backend="nodes").double()
        expected = semantic_guided_attention(features.double(), embeddings.double(), backend="reference")
        assert float((received - expected).abs().amax()) <= 1e-5

    def test_only_channels_of_great_reach_take_the_exact_form(self, draw: Callable, exact_calls) -> None:
        num_steep = 40
        case = draw("bell-shaped", "small", 196, 300, 200)
        case = type(case)(case.features, case.embeddings.clone(), case.weights)
        case.embeddings[:, :num_steep] *= 10_000
        values, grad_features, grad_embeddings = case.run("nodes")
        for calls in (exact_calls.attended, exact_calls.differentiated):
            assert num_steep <= sum(channels for rows, channels in calls if rows == 300) <= 2 * num_steep
            assert all(rows <= FINEST for rows, _ in calls if rows != 300)
        steep = type(case)(case.features[:, :num_steep], case.embeddings[:, :num_steep], case.weights[..., :num_steep])
        received = values[..., :num_steep], grad_features[:, :num_steep], grad_embeddings[:, :num_steep]
        for value, expected in zip(received, steep.run("cpu"), strict=True):
            torch.testing.assert_close(value, expected)
        flat = type(case)(case.features[:, num_steep:], case.embeddings[:, num_steep:], case.weights[..., num_steep:])
        received = values[..., num_steep:], grad_features[:, num_steep:], grad_embeddings[:, num_steep:]
        for value, expected in zip(received, flat.expected, strict=True):
            assert float((value - expected).abs().amax() / expected.abs().amax()) <= 1e-5

    def test_small_work_takes_the_exact_form_unless_forced(self, draw: Callable, exact_calls) -> None:
        case = draw("bell-shaped", "small", 49, 20, 5)
        case.run("auto")
        assert exact_calls.attended == exact_calls.differentiated == [(20, 5)]
        exact_calls.attended.clear()
        case.run("nodes")
        assert {rows for rows, _ in exact_calls.attended} <= set(nodes.NUM_NODES)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("where", ["features", "embeddings"])
    def test_what_is_not_finite_comes_out_as_of_the_exact_form(self, draw: Callable, where: str, value: float) -> None:
        case = draw("bell-shaped", "small", 196, 84, 40)
        features, embeddings = case.features.clone(), case.embeddings.clone()
        if where == "features":
            features[1, 2, 3, 4] = value
        else:
            embeddings[5, 6] = value
        broken = type(case)(features, embeddings, case.weights)
        for received, expected in zip(broken.run("nodes"), broken.run("cpu"), strict=True):
            assert received.isnan().equal(expected.isnan())
            torch.testing.assert_close(received, expected, equal_nan=True)


@pytest.mark.parametrize("features", ["bell-shaped", "two clusters", "three values", "heavy-tailed"])
@pytest.mark.parametrize("score", ["3", "10", "30", "100"])
@pytest.mark.parametrize("backend", ["nodes", "auto"])
def test_forward_and_backward_choose_alike(
    draw: Callable, exact_calls, features: str, score: str, backend: str
) -> None:
    case = draw(features, score, 196, 300, 90)
    embeddings = case.embeddings * torch.logspace(-2, 0.5, 90)  # channels of every reach
    inputs = case.features.clone().requires_grad_(), embeddings.requires_grad_()
    values = semantic_guided_attention(*inputs, backend=backend)
    forward = list(exact_calls.attended)
    exact_calls.attended.clear()
    values.backward(case.weights)
    assert exact_calls.attended == [call for call in forward if call[0] != 300]
    # Each channel is differentiated once with nodes or exactly, and once more where do/de is not resolved.
    exact = [channels for rows, channels in forward if rows == 300]
    assert sum(channels for rows, channels in exact_calls.differentiated if rows != 300) == 90 - sum(exact)
    assert sum(channels for rows, channels in exact_calls.differentiated if rows == 300) >= sum(exact)


KINDS = [
    "bell-shaped",
    "sparse",
    "two clusters",
    "offset",
    "one-hot",
    "constant",
    "heavy-tailed",
    "skewed",
    "three values",
]
ANY_CASE = {
    "features": st.sampled_from(KINDS),
    "score": st.floats(-2, 2.7).map(lambda power: 10**power),
    "num_positions": st.sampled_from([1, 2, 3, 5, 16, 49, 63, 130]),
    "num_labels": st.sampled_from([1, 2, 3, 10, 20, 84, 150]),
    "dim": st.integers(1, 6),
    "num_images": st.integers(1, 3),
    "scale": st.floats(-3, 3).map(lambda power: 10**power),
    "centre": st.sampled_from([0.0, 0.0, 0.1, -0.5, 1.0, -5.0, 50.0]),
    "seed": st.integers(0, 2**32 - 1),
}
given_any_case = given(**ANY_CASE)
lightly = settings(max_examples=100, deadline=None, derandomize=True)


def check_any_case(
    draw: Callable, dtype: torch.dtype, tolerance: float, score: float, **kinds_and_sizes: object
) -> None:
    case = draw(embeddings=str(score), dtype=dtype, **kinds_and_sizes)
    # Expected entries count for a tenth of their natural scale at least: interpolation is right beside the largest feature.
    received = zip(case.errors("nodes", floor=0.1), case.errors("cpu", floor=0.1), strict=True)
    is_right = [error <= max(tolerance, 5 * of_exact) for error, of_exact in received]
    # The gradient of the features holds e (f - o): it loses to the rounding of scores as the exact form does, times the Lebesgue
    # constant of interpolation, which is less than 4 for 64 nodes.
    rounding = 16 * torch.finfo(dtype).eps * case.largest_score
    is_right[1] = is_right[1] or case.errors("nodes", floor=1.0)[1] <= rounding
    assert all(is_right), (case.errors("nodes", floor=0.1), case.errors("cpu", floor=0.1), rounding)


@lightly
@given_any_case
def test_any_case_in_float32(draw: Callable, **case: object) -> None:
    check_any_case(draw, torch.float32, 1e-5, **case)


@lightly
@given_any_case
def test_any_case_in_float64(draw: Callable, **case: object) -> None:
    check_any_case(draw, torch.float64, 1e-10, **case)


@pytest.mark.slow
@settings(lightly, max_examples=3_000, derandomize=False)
@given_any_case
def test_thousands_of_cases_in_float32(draw: Callable, **case: object) -> None:
    check_any_case(draw, torch.float32, 1e-5, **case)


def test_nodes_are_computed_by_the_exact_form_given(draw: Callable, exact_calls) -> None:
    case = draw("bell-shaped", "small", 196, 84, 5)
    values = case.features.flatten(2).transpose(1, 2)
    values = values - values.mean(dim=1, keepdim=True)
    received = nodes.attend(values, case.embeddings, exact=cpu, force=True)
    assert exact_calls.attended
    assert all(rows < 84 for rows, _ in exact_calls.attended)
    torch.testing.assert_close(received, cpu.attend(values, case.embeddings))
