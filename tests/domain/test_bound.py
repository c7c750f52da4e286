"""The strict bound of a request's tokens, and the estimate that learns."""

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.bound import Bound, Content, TokenEstimator, bound


def test_input_is_bytes_and_images_at_their_maximum() -> None:
    """Text counts a token a byte, an image what the provider publishes, output its limit times the choices."""
    content = Content(text_bytes=100, images=2, extra_input_tokens=7, extra_output_tokens=3)
    assert bound(content, max_output=50, choices=4, image_tokens_max=1000) == Bound(2107, 212)


def test_a_certain_context_window_is_a_bound_of_one_prompt() -> None:
    """A list of prompts has a window each, so it is not bounded by one."""
    assert bound(Content(text_bytes=900), max_output=1, choices=1, image_tokens_max=1, context_window=500) == Bound(
        500, 1
    )
    several = Content(text_bytes=900, one_context=False)
    assert bound(several, max_output=1, choices=1, image_tokens_max=1, context_window=500) == Bound(900, 1)


def test_a_certain_output_maximum_tightens_a_larger_limit() -> None:
    """A provider never answers with more than its model can."""
    limited = bound(Content(text_bytes=1), max_output=10**6, choices=2, image_tokens_max=1, max_output_tokens=100)
    assert limited.output_tokens == 200


def test_a_stored_conversation_is_bounded_by_what_can_be_stored() -> None:
    """Of unknown length without a window; never below the bytes sent."""
    content = Content(text_bytes=10, stored_context="conversation")
    unknown = bound(content, max_output=1, choices=1, image_tokens_max=1)
    assert unknown.unbounded == "'conversation' adds a stored conversation of unknown length"
    assert bound(content, max_output=1, choices=1, image_tokens_max=1, stored_tokens_max=128_000) == Bound(128_000, 1)
    long = Content(text_bytes=300_000, stored_context="conversation")
    assert bound(long, max_output=1, choices=1, image_tokens_max=1, stored_tokens_max=128_000) == Bound(300_000, 1)


def test_a_reason_is_kept() -> None:
    """What made the content unbounded is what the client is told."""
    content = Content(text_bytes=1, unbounded="a PDF", stored_context="conversation")
    assert bound(content, max_output=1, choices=1, image_tokens_max=1).unbounded == "a PDF"


def test_the_estimate_starts_with_english_and_learns() -> None:
    """After many requests of one token a byte, estimates are close to one token a byte."""
    estimator = TokenEstimator()
    assert estimator.estimate_tokens("m", input_bytes=400, max_output=1000) == 100 + 256
    assert estimator.estimate_tokens("m", input_bytes=400, max_output=10, choices=3) == 100 + 30
    estimator.learn("m", input_bytes=400, input_tokens=100, output_tokens=20)
    assert estimator.estimate_tokens("m", input_bytes=800, max_output=1000) == 220
    for _ in range(200):
        estimator.learn("m", input_bytes=400, input_tokens=400, output_tokens=500)
    assert abs(estimator.estimate_tokens("m", input_bytes=400, max_output=1000) - 900) < 20
    assert estimator.estimate_tokens("other", input_bytes=400, max_output=0) == 100


def test_models_are_bounded() -> None:
    """A client that invents names does not fill the memory."""
    estimator = TokenEstimator()
    for i in range(TokenEstimator.MODELS_MAX + 50):
        estimator.learn(str(i), input_bytes=10, input_tokens=5, output_tokens=1)
    assert len(estimator._models) == TokenEstimator.MODELS_MAX


@given(
    st.lists(
        st.tuples(st.integers(0, 2**30), st.integers(0, 2**30), st.integers(0, 2**30)),
        max_size=20,
    ),
    st.integers(0, 2**30),
    st.integers(0, 2**20),
)
def test_an_estimate_is_always_possible(seen: list[tuple[int, int, int]], size: int, limit: int) -> None:
    """Whatever was observed, an estimate is at least 1 and its output part never above the limit."""
    estimator = TokenEstimator()
    for input_bytes, input_tokens, output_tokens in seen:
        estimator.learn("m", input_bytes=input_bytes, input_tokens=input_tokens, output_tokens=output_tokens)
    without = estimator.estimate_tokens("m", input_bytes=size, max_output=0)
    assert 1 <= estimator.estimate_tokens("m", input_bytes=size, max_output=limit) <= without + limit
