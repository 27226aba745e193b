import random

import numpy as np
import torch

from adbench.streams import derived_seed, numpy_stream, seeded_globals, torch_stream


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


def test_foreign_code_draws_from_seeded_globals_and_leaves_no_trace():
    everything = lambda: (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())  # noqa: E731
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    undisturbed = everything()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with seeded_globals(0, "bank"):
        first = everything()
    with seeded_globals(0, "bank"):
        assert everything() == first
    with seeded_globals(0, "other"):
        assert everything() != first
    assert everything() == undisturbed
