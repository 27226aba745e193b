import numpy as np
import torch
from PIL import Image

from adbench.studies import corruptions
from adbench.transforms.corruption import Cutout, Elastic


def test_a_sheet_shows_clean_images_then_corrupted_ones_and_their_masks():
    clean = torch.full((3, 3, 16, 24), 0.6)
    sheet = corruptions.contact_sheet(clean, Cutout(), draws=2, seed=0)
    pitch_y, pitch_x = 16 + corruptions.GAP, 24 + corruptions.GAP
    assert sheet.shape == (5 * pitch_y - corruptions.GAP, 3 * pitch_x - corruptions.GAP, 3)
    assert sheet.dtype == np.uint8
    picture = lambda row, col: sheet[row * pitch_y :, col * pitch_x :][:16, :24]  # noqa: E731
    assert (picture(0, 1) == 153).all()
    for row in (1, 3):
        assert ((picture(row, 2) == 0) == (picture(row + 1, 2) == 255)).all()
        assert (picture(row, 2) == 0).any()
    assert not np.array_equal(picture(2, 0), picture(4, 0))


def test_the_same_seed_draws_the_same_sheet():
    clean = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (corruptions.contact_sheet(clean, Elastic(), 1, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_command_draws_the_embedded_textures(tmp_path, capsys):
    out = tmp_path / "sheets" / "grass.png"
    code = corruptions.main(
        [
            "method=ssae/small",
            "data=textures/grass",
            f"cache_dir={tmp_path}",
            "--out",
            str(out),
            "--images",
            "4",
            "--draws",
            "1",
        ]
    )
    assert code == 0, capsys.readouterr().err
    assert Image.open(out).size == (4 * 132 - 4, 3 * 132 - 4)
    assert str(out) in capsys.readouterr().out


def test_mistakes_are_answered_with_one_message(tmp_path, capsys):
    for arguments, message in (
        (["data=textures/gras"], "did you mean"),
        (["method=brightness"], "trains without artificial defects"),
        (["data=textures/grass", "--images", "0"], "at least 1"),
        (["data=mvtec/bottle", "data_root=/nowhere"], "expected normal training images in /nowhere"),
    ):
        assert corruptions.main([*arguments, f"cache_dir={tmp_path}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
