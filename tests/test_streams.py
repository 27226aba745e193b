import torch

from adbench.streams import derived_seed, numpy_stream, torch_stream


def test_a_stream_depends_on_seed_purpose_and_index_only():
    draw = lambda *key: torch.rand(4, generator=torch_stream(*key))  # noqa: E731
    assert torch.equal(draw(0, "noise", 3), draw(0, "noise", 3))
    for other in [(1, "noise", 3), (0, "rows", 3), (0, "noise", 4)]:
        assert not torch.equal(draw(0, "noise", 3), draw(*other))


def test_names_are_not_glued_together():
    assert derived_seed(0, "a", "bc") != derived_seed(0, "ab", "c")


def test_seed_zero_is_a_seed_of_its_own():
    assert numpy_stream(0, "rows").random() == numpy_stream(0, "rows").random()
    assert numpy_stream(0, "rows").random() != numpy_stream(1, "rows").random()
