"""Reading files of weights: no code of a file runs, and what cannot be read is told from what is not whole."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atopipe.pipeline.models.weights.checkpoint import Placeholder, read_checkpoint
from atopipe.pipeline.system.errors import MissingError, UsageError

STATE = nn.Linear(4, 4).state_dict()


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def refusal(path: Path, kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        read_checkpoint(path, "--weights 'w'")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("hidden", ["value", "key of an array"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, new: bool, hidden: str) -> None:
    import numpy as np

    path, proof = tmp_path / "w.pt", tmp_path / "it ran"
    bad: object = Malicious(proof) if hidden == "value" else np.array([Malicious(proof)], dtype=object)
    torch.save({"state_dict": STATE, "extra": bad}, path, _use_new_zipfile_serialization=new)
    assert refusal(path) == (
        "--weights 'w' holds objects of builtins.exec, which could run code when they are loaded: "
        "save the weights alone there: torch.save(model.state_dict(), 'weights.pt')"
    ).replace("builtins.exec", "exec" if not new else "builtins.exec")
    assert not proof.exists()


def test_a_bare_malicious_pickle_is_refused(tmp_path: Path) -> None:
    path, proof = tmp_path / "w.pkl", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises((UsageError, MissingError)):
        read_checkpoint(path, "--weights 'w'")
    assert not proof.exists()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_whole_pickled_network_is_refused_with_the_remedy(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Sequential(nn.Linear(4, 4)), path, _use_new_zipfile_serialization=new)
    assert refusal(path) == (
        "--weights 'w' is a whole pickled network, which runs code when it is loaded: "
        "save the weights alone there: torch.save(model.state_dict(), 'weights.pt')"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)).save(str(path))  # type: ignore[no-untyped-call]
    assert refusal(path).startswith("--weights 'w' is a TorchScript archive: load it with torch.jit.load where it was")


def test_classes_of_libraries_that_are_not_there_become_placeholders(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": STATE, "hyper_parameters": Placeholder()}, path)
    content = path.read_bytes()
    name = f"{Placeholder.__module__}\n{Placeholder.__qualname__}\n".encode()
    with zipfile.ZipFile(path) as archive:
        parts = {item: archive.read(item) for item in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for item, part in parts.items():
            archive.writestr(item, part.replace(name, b"omegaconf.dictconfig\nDictConfig\n"))
    assert content != path.read_bytes()
    loaded = read_checkpoint(path, "--weights 'w'")
    assert isinstance(loaded, dict)
    assert isinstance(loaded["hyper_parameters"], Placeholder)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "legacy.pt"])
def test_a_file_that_is_not_whole_is_damaged(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    if name.endswith("s"):
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "w.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert refusal(path, MissingError).startswith("--weights 'w' is damaged or incomplete (")


def test_what_is_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    assert refusal(tmp_path, MissingError) == "--weights 'w' is a folder: give the path of a file of weights"
    path.touch()
    assert refusal(path, MissingError) == "--weights 'w' is empty: copy or fetch it again"
    path.write_text("<!DOCTYPE html><html><head><title>404: this page was not found</title></head></html>")
    assert refusal(path) == "--weights 'w' is text, not weights: give safetensors, or a file that torch.save wrote"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\n")
    assert "is a Git LFS pointer (git lfs pull fetches the file), not weights" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY")
    assert refusal(path).startswith("--weights 'w' is an archive, but not of torch.save: give safetensors, or a file")
