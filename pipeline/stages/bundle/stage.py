"""Pack what the device gets: the model, what it needs, what it should answer, and a program that runs and checks it.

Leaves bundle/ and bundle.zip, which the run directory gets copies of. The packed files are then replayed in a process
of their own in which torch cannot be imported: what is shipped is what was tested.
"""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.settings import TARGETS
from atopipe.pipeline.engine.networks import load_shrunk
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.models.inference import as_function
from atopipe.pipeline.report.results import publish_verdict, results_of, summary_of, verdict_of
from atopipe.pipeline.report.verdicts import equivalence_failure, verdicts_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import MODEL, Result, file_of
from atopipe.pipeline.rundir.store import remove
from atopipe.pipeline.stages.bundle.archive import write_sums, write_zip
from atopipe.pipeline.stages.bundle.card import model_card
from atopipe.pipeline.system.errors import ParityGateFailed
from atopipe.pipeline.system.files import files_in, sha256_file, write_bytes, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PROGRAMS = Path(__file__).with_name("device")
FOLDER, ARCHIVE = "bundle", "bundle.zip"
SAMPLES = 8
PHOTO = (97, 131)  # height and width of a picture that needs scaling and cutting
REPLAY = (  # None makes `import torch` fail
    "import runpy, sys; sys.modules['torch'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
REPLAY_SECONDS = 300


def run(context: Context) -> dict[str, float]:
    results = results_of(context.run, context.stage.inputs)
    _refuse_another_model(context.run, results)
    folder = context.folder / FOLDER
    (folder / "samples").mkdir(parents=True)
    for file in _models(context):
        shutil.copyfile(file, folder / file.name)
    for program in sorted(PROGRAMS.glob("*.py")):
        shutil.copyfile(program, folder / program.name)
    data = context.workspace.data
    write_text(folder / "labels.txt", "".join(f"{label}\n" for label in data.labels))
    write_text(folder / "preprocess.json", data.preprocessing.to_json() + "\n")
    _write_samples(context, folder)
    settings, weights = json.loads(data.preprocessing.to_json()), context.run.record.starting_weights()
    summary = replace(summary_of(context.run, results), title=_title(context), model=MODEL)
    write_text(folder / "MODEL_CARD.md", model_card(summary, data.labels, settings, _structures(context), weights))
    write_json(folder / "manifest.json", _manifest(context, results, folder))
    write_sums(folder)
    replayed = _replay(folder)
    write_zip(folder, context.folder / ARCHIVE)
    _publish(context)
    return {
        "size.bundle_bytes": (context.folder / ARCHIVE).stat().st_size,
        "parity.bundle_max_abs_diff": replayed["selftest"]["max_abs_diff"],
    }


def _refuse_another_model(run: RunDirectory, results: Sequence[Result]) -> None:
    """Raises ParityGateFailed for a model that is not the trained one, and says so where a build server looks.

    What an earlier attempt delivered is taken away.
    """
    if error := equivalence_failure(verdicts_of(run)):
        publish_verdict(run, results)
        remove(run.root / FOLDER)
        (run.root / ARCHIVE).unlink(missing_ok=True)
        raise error


def _models(context: Context) -> list[Path]:
    """What is delivered: model.onnx, and the variants that validation kept."""
    kept = verdict_of(context.run)["kept"][1:]
    return [context.input("export", MODEL), *(context.input("quantize", file_of(name)) for name in kept)]


def _structures(context: Context) -> dict[str, Any]:
    """File name -> what was read back from it, of all that is delivered."""
    whole = json.loads(context.input("export", "structure.json").read_text(encoding="utf-8"))[MODEL]
    names = verdict_of(context.run)["kept"][1:]
    made = json.loads(context.input("quantize", "variants.json").read_text(encoding="utf-8")) if names else {}
    return {MODEL: whole, **{file_of(name): made[name] for name in names}}


def _write_samples(context: Context, folder: Path) -> None:
    """Validation images with the logits that torch gives for them, for infer.py and for ONNX Runtime's test runner.

    Of a variant, whose logits torch does not know, they are those that ONNX Runtime gives here.
    """
    import numpy as np
    import torch
    from PIL import Image

    from atopipe.export.onnx import save_test_data
    from atopipe.pipeline.data.preprocessing import preprocess
    from atopipe.validate.session import open_session

    settings = context.workspace.data.preprocessing
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (settings.mean, settings.std))
    drawn = context.workspace.images(SAMPLES).numpy()
    pixels = ((drawn * std + mean) * 255).round().astype(np.uint8)
    images = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    logits = as_function(load_shrunk(context.run), torch.device("cpu"))(images)
    variants = verdict_of(context.run)["kept"][1:]
    photo = _photo()
    arrays = {
        "pixels": pixels,
        "images": images,
        "logits": logits,
        "photo": photo,
        "photo_input": preprocess(Image.fromarray(photo), settings),
        **{f"logits_{name}": open_session(folder / file_of(name)).run(images) for name in variants},
    }
    write_bytes(folder / "samples" / "samples.npz", _npz(arrays))
    save_test_data(folder / "test_data_set_0", images, logits)


def _npz(arrays: "Mapping[str, NDArray[Any]]") -> bytes:
    """The arrays as numpy's .npz; equal arrays give equal bytes."""
    import numpy as np

    content = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed  # its stub has no room for names of arrays
    save(content, **arrays)
    return content.getvalue()


def _photo() -> "NDArray[np.uint8]":
    """A picture [H, W, 3] of slopes and edges, which shows every pixel that is scaled or cut otherwise."""
    import numpy as np

    y, x = np.mgrid[: PHOTO[0], : PHOTO[1]]
    channels = [2 * y + x // 2, 255 - y - x // 2, 255 * ((y // 8 + x // 8) % 2)]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def _manifest(context: Context, results: Sequence[Result], folder: Path) -> dict[str, Any]:
    """Where the files come from: the chain of digests from training to the model, and every file's own."""
    return {
        "model": context.config.model.name,
        "data": _data_name(context),
        "targets": {cost: target.plain() for cost, target in context.config.targets.items()},
        "seed": context.config.seed,
        "weights": context.run.record.starting_weights(),
        "metrics": {name: value for result in results for name, value in result.metrics.items()},
        "variants": verdict_of(context.run),
        "gates": json.loads(context.input("validate", "gates.json").read_text(encoding="utf-8")),
        "stages": [
            {"stage": r.stage, "key": r.key, "digest": r.digest, "inputs": r.depends["inputs"]} for r in results
        ],
        "files": {file.relative_to(folder).as_posix(): sha256_file(file) for file in files_in(folder)},
    }


def _title(context: Context) -> str:
    return f"{context.config.model.name} on {_data_name(context)}, seed {context.config.seed}"


def _data_name(context: Context) -> str:
    """The source of the data without the folders above it, which have no place in what is handed over."""
    return context.config.data.source.rstrip("/").rpartition("/")[2]


def _replay(folder: Path) -> dict[str, Any]:
    """What infer.py finds in a process without torch; ParityGateFailed with its words where it fails."""
    command = [sys.executable, "-I", "-c", REPLAY, str(folder / "infer.py"), "--selftest", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ParityGateFailed(f"the bundle has not passed its self-test within {REPLAY_SECONDS} s") from None
    if done.returncode != 0:
        said = next(reversed(done.stderr.strip().splitlines()), "no reason given")
        raise ParityGateFailed(f"the bundle fails its self-test: {said}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _publish(context: Context) -> None:
    """Copies for people, at the top of the run directory, in the place of older ones."""
    root, partial = context.run.root, context.run.root / f".{FOLDER}.partial"
    remove(partial)
    shutil.copytree(context.folder / FOLDER, partial)
    remove(root / FOLDER)
    partial.rename(root / FOLDER)
    write_bytes(root / ARCHIVE, (context.folder / ARCHIVE).read_bytes())


STAGE = Stage(
    name="bundle",
    run=run,
    inputs=("train", "baseline", "shrink", "export", "quantize", "validate"),
    settings=("model", "data", *TARGETS, "baseline", "variants", "gates", "seed"),
    libraries=("torch", "numpy", "onnx", "onnxruntime"),
    published=True,
)
