"""`atopipe pack`: one copy of a folder of photographs, scaled down, that every run and process reads from."""

import shutil
from pathlib import Path

import click

from atopipe.pipeline.system.errors import MissingError


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--short-side",
    type=click.IntRange(32, 4096),
    default=320,
    help="Pixels of the shorter side of training images (default 320).",
)
@click.option("--check", is_flag=True, help="Only compare the shards that are there with their digests.")
def pack(source: Path, output: Path, short_side: int, check: bool) -> None:
    """Copy the images of the class folders SOURCE into a few files in OUTPUT, for --data webdataset:OUTPUT.

    Training images are scaled down, validation images copied as they are. An interrupted copy is taken up again.
    """
    from atopipe.pipeline.data.photographs.pack import Part, make_pack, verify_pack
    from atopipe.pipeline.data.sources.file_list import ListedFiles
    from atopipe.pipeline.data.sources.image_folder_layout import find_splits
    from atopipe.pipeline.data.sources.webdataset import CLASSES
    from atopipe.pipeline.report.terminal import open_display
    from atopipe.pipeline.system.files import write_text

    if check:
        click.echo(f"pack    {len(verify_pack(output)):,} shards are as they were written")
        return
    train, val = find_splits(source.expanduser())
    parts = [Part("train", train.paths, train.labels, scaled=True), Part("val", val.paths, val.labels, scaled=False)]
    listed = ListedFiles(source, {part.name: files.paths for part, files in zip(parts, (train, val), strict=True)})
    _require_room(output, listed.total_bytes())
    display = open_display(quiet=False, as_json=False)
    try:
        make_pack(output, listed.digest(), parts, short_side, display.loading)
        write_text(output / CLASSES, "".join(f"{name}\n" for name in train.classes))
    finally:
        display.stop()
    click.echo(f"pack    {len(train.paths) + len(val.paths):,} images: use --data webdataset:{output}")


def _require_room(output: Path, needed: int) -> None:
    """The copy takes no more than the originals; MissingError where there is less."""
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    have = sum(path.stat().st_size for path in output.glob("*")) if output.is_dir() else 0
    free = shutil.disk_usage(place).free
    if needed - have > free:
        what = f"the copy may need {(needed - have) / 1e9:.1f} GB and '{place}' has {free / 1e9:.1f} GB free"
        raise MissingError(f"{what}: free some, or choose another folder")
