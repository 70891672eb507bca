"""The user's code is a guest: what it does to the process is undone, what it raises is an error of that code."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atopipe.pipeline.models.build import ModelError, build_model
from atopipe.pipeline.system import user_code

NET = "from torch import nn\n\n{top}\n\ndef net(num_classes):\n    {inside}\n    return nn.Linear(3, num_classes)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(here: Path, top: str = "", inside: str = "pass", name: str = "own_net") -> str:
    (here / f"{name}.py").write_text(NET.format(top=top, inside=inside))
    return name


def refused(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        build_model(name, 4)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("form", ["{0}:net", "{0}.py:net"])
@pytest.mark.parametrize("code", ["0", "", "3", "'enough'"])
@pytest.mark.parametrize("place", ["top", "inside"])
def test_sys_exit_is_an_error_of_the_code(here: Path, form: str, code: str, place: str) -> None:
    name = write(here, **{place: f"import sys; sys.exit({code})"})
    assert f"it ended the program with sys.exit({code.strip(chr(39))})" in refused(form.format(name))


@pytest.mark.parametrize("form", ["{0}:net", "{0}.py:net"])
def test_what_it_prints_goes_to_standard_error(here: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    build_model(form.format(write(here, "print('at import')", "print('when called')")), 4)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()) == ("", ["at import", "when called"])


@pytest.mark.parametrize("form", ["{0}:net", "{0}.py:net"])
@pytest.mark.parametrize("place", ["top", "inside"])
def test_its_working_directory_is_put_back(here: Path, form: str, place: str) -> None:
    build_model(form.format(write(here, **{place: "import os; os.chdir('/')"})), 4)
    assert Path.cwd() == here


@pytest.mark.parametrize("form", ["{0}:net", "{0}.py:net"])
def test_it_sees_no_option_of_atopipe(here: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["atopipe", "run", "--model", "x"])
    parser = "import argparse; p = argparse.ArgumentParser(); p.add_argument('--width', default=4); a = p.parse_args()"
    build_model(form.format(write(here, parser)), 4)
    assert sys.argv == ["atopipe", "run", "--model", "x"]
    needs = write(here, parser.replace("default=4", "required=True"), name="own_net_that_needs")
    words = refused(form.format(needs))
    assert "it ended the program with sys.exit(2); move what " in words
    assert words.endswith("does as a program below if __name__ == '__main__'")


def test_a_relative_import_in_a_file_has_a_remedy(here: Path) -> None:
    (here / "helper.py").write_text("")
    words = refused(f"{write(here, 'from . import helper')}.py:net")
    assert words.endswith("import its neighbours by their names alone, or name the module as your_pkg.mod:factory")


@pytest.mark.parametrize("library", ["onnx", "scipy", "safetensors"])
def test_a_neighbour_named_as_a_library_does_not_hide_it(here: Path, library: str) -> None:
    (here / f"{library}.py").write_text("raise RuntimeError('hidden')")
    build_model(f"{write(here)}.py:net", 4)
    assert str(here) != sys.path[0]
    spec = __import__("importlib.util").util.find_spec(library)
    assert spec.origin != str(here / f"{library}.py")


def test_a_neighbour_that_took_the_place_of_a_library_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    monkeypatch.setattr(user_code, "LATER", ("onnxscript",))
    (here / "onnxscript.py").write_text("")
    words = refused(f"{write(here, 'import onnxscript')}.py:net")
    assert words.endswith("was imported in the place of the library onnxscript: give it another name")
    sys.modules.pop("onnxscript", None)


@pytest.mark.parametrize("form", ["{0}:net", "{0}.py:net"])
@pytest.mark.parametrize("edited", ["own_net", "own_helper"])
def test_code_that_changed_since_its_import_is_refused(here: Path, form: str, edited: str) -> None:
    (here / "own_helper.py").write_text("width = 3")
    name = form.format(write(here, "from own_helper import width"))
    build_model(name, 4)
    build_model(name, 4)
    path = here / f"{edited}.py"
    path.write_text(path.read_text().replace("3", "4"))
    assert "has changed since it was imported: restore it, or start Python again" in refused(name)


def test_a_module_of_the_same_name_elsewhere_is_not_taken_for_the_first(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model(f"{write(here)}:net", 4)
    for folder in ("copy", "other"):
        (here / folder).mkdir()
        monkeypatch.chdir(here / folder)
        write(here / folder, inside="pass" if folder == "copy" else "width = 5")
        if folder == "copy":
            build_model("own_net:net", 4)
        else:
            assert "'own_net.py' has changed since it was imported" in refused("own_net:net")


def test_the_same_second_and_size_do_not_bring_old_bytecode_back(here: Path) -> None:
    for width in (3, 4):
        (here / "own_net.py").write_text(f"from torch import nn\ndef net(num_classes): return nn.Linear({width}, 2)\n")
        os.utime(here / "own_net.py", (1, 1))
        assert build_model("own_net:net", 4).in_features == width
        del sys.modules["own_net"]


def test_the_command_line_has_json_only_on_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from atopipe.pipeline.cli.main import main

    name = write(here, "print('noise')", "print('more')")
    (here / f"{name}.py").write_text(
        (here / f"{name}.py")
        .read_text()
        .replace(
            "nn.Linear(3, num_classes)",
            "nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), "
            "nn.Flatten(), nn.Linear(8, num_classes))",
        )
    )
    assert main(["inspect", "--model", f"{name}:net", "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
