"""What a training says of settings that do not suit the data or the job."""

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.engine.training import doubtful_settings


@pytest.mark.parametrize(
    ("recipe", "batch", "images", "processes", "words"),
    [
        ("quick", 64, 1437, 1, []),
        ("quick", 64, 1437, 2, []),
        ("quick", 64, 1437, 8, ["leaves 8 images for each of 8 processes", "--batch-size 256 gives each 32"]),
        ("quick", 64, 1_281_167, 1, ["recipe quick is for small data, and there are 1,281,167 images"]),
        ("imagenet", 512, 1_281_167, 8, []),
    ],
)
def test_settings_that_do_not_suit_are_told(
    recipe: str, batch: int, images: int, processes: int, words: list[str]
) -> None:
    values = {"model.name": "resnet18", "target_flops": 0.5, "recipe": recipe, "recipe.batch_size": batch}
    said = list(doubtful_settings(load_config(None, values), images, processes))
    assert len(said) == (1 if words else 0)
    assert all(word in said[0] for word in words)
