"""What the pages say is true: commands, settings, links, metrics, exit codes and versions."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from atopipe.ato.schedule import Phase
from atopipe.ato.training.loop import EpochRecord
from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.cli.settings import configuration
from atopipe.pipeline.config.load import load_config, parse_config, recipe_names
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.settings import FLAGS
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.data.load import SOURCES, source_names
from atopipe.pipeline.models.build import model_names
from atopipe.pipeline.report.summary import GATES, both_readings
from atopipe.pipeline.report.terminal import epoch_line
from atopipe.pipeline.report.verdicts import EQUIVALENCE_GATES
from atopipe.pipeline.system import errors, failures

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
METRIC = re.compile(
    r"(?!.*\.(?:json|yaml)$)(?:flops|params|size|lossless|parity|accuracy|latency|memory|time)\.[a-z0-9_]+"
)
REFUSED = re.compile(r"^\$ (atopipe .*)\n(atopipe: .*)\n", re.MULTILINE)
EPOCH = re.compile(
    r"^epoch +(?P<epoch>\d+)/(?P<epochs>\d+) +(?P<phase>\w+) +loss (?P<loss>\S+) +"
    r"accuracy train (?P<train_accuracy>\S+) val (?P<val_accuracy>\S+) +"
    r"FLOPs kept (?P<kept>\S+) +(?P<seconds>\S+) s$",
    re.MULTILINE,
)
FOLDERS = ("ato/", "export/", "validate/", "pipeline/", "tests/", "docs/", "scripts/", ".ci/")


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCED.findall(text) if name == language]


def code_lines(text: str) -> Iterator[str]:
    """The lines of fenced and of indented code, without a prompt."""
    for _, body in FENCED.findall(text):
        yield from (line.removeprefix("$ ") for line in body.splitlines())
    yield from re.findall(r"^    (\S.*)$", FENCED.sub("", text), re.MULTILINE)


def inline_code(text: str) -> list[str]:
    return INLINE.findall(FENCED.sub("", text))


def commands(text: str) -> list[str]:
    """Whole command lines: those in code blocks that call atopipe, split at `&&`, but for those shown to be refused."""
    parts = [part.strip() for line in code_lines(REFUSED.sub("", text)) for part in line.split("&&")]
    return [part for part in parts if part.startswith("atopipe ")]


COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})
MENTIONED = sorted({code for text in TEXTS.values() for code in inline_code(text) if code.startswith("atopipe ")})
YAML_BLOCKS = [block for text in TEXTS.values() for block in blocks(text, "yaml")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the configuration file that the pages name, and no settings from outside."""
    for parameter in cli.commands["run"].params:
        monkeypatch.delenv(str(parameter.envvar), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.yaml").write_text("{model: resnet18, target_flops: 0.5, data: 'imagefolder:photos'}")
    return tmp_path


def parsed(command: str) -> dict[str, Any]:
    """The parameters of a command line as the real command understands them."""
    _, name, *arguments = shlex.split(command)
    called = cli.commands[name]
    if isinstance(called, click.Group) and arguments and arguments[0] in called.commands:
        called, (name, *arguments) = called.commands[arguments[0]], arguments
    return dict(called.make_context(name, arguments).params)


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) >= 8
    assert len(YAML_BLOCKS) >= 4
    assert "atopipe run --model resnet50 --target-flops 0.3" in COMMANDS


def test_the_set_up_is_the_promised_two_lines() -> None:
    indented = code_lines(FENCED.sub("", TEXTS["README.md"]))
    assert list(indented) == [
        "pip install . && atopipe run --model resnet50 --target-flops 0.3",
        "pip install -e '.[dev]' && pytest",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_line_is_accepted(command: str) -> None:
    parameters = parsed(command)
    if not parameters.get("model"):
        return
    settings = {p.name for p in cli.commands["inspect"].params} - {"as_json"}
    given = {name: value for name, value in parameters.items() if name in settings}
    for target in (given["target_flops"] or "1").split(","):  # a sweep has several
        config = configuration({**given, "target_flops": target})
        assert config.data.source.partition(":")[0] in {*SOURCES, "noise"}


def test_the_models_of_the_command_lines_exist() -> None:
    named = {str(model) for command in COMMANDS if (model := parsed(command).get("model"))}
    assert {name for name in named if ":" not in name and not name.startswith("timm/")} - set(model_names()) == set()


def test_a_refused_command_is_refused_with_the_words_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    refused = REFUSED.findall(TEXTS["docs/reference/exit-codes.md"])
    assert refused
    for command, answer in refused:
        assert main(shlex.split(command)[1:]) == errors.UsageError.exit_code
        assert capsys.readouterr().err.strip() == answer


@pytest.mark.parametrize("mention", MENTIONED)
def test_a_mentioned_command_and_its_options_exist(mention: str) -> None:
    _, *words = shlex.split(mention)
    command: click.Command = cli
    if not words[0].startswith("-"):
        command = cli.commands[words.pop(0)]
    options = [option for p in command.params for option in (*p.opts, *p.secondary_opts)]
    known = {*options, "--help"}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_shown_run_speaks_as_runs_do() -> None:
    shown = TEXTS["README.md"]
    epochs = [match.groupdict() for match in EPOCH.finditer(shown)]
    assert len({epoch["phase"] for epoch in epochs}) == len(Phase)
    for epoch in epochs:
        values = {name: text if name == "phase" else yaml.safe_load(text) for name, text in epoch.items()}
        values["kept"] = {"flops": values["kept"]}
        assert f"\n{epoch_line(EpochRecord(**values, learning_rate=0.0))}\n" in shown
    assert f"\ntarget  {both_readings({'flops': Target.parse(0.3)})}\n" in shown
    judged = set(re.findall(r"^(.+?) +pass  ", shown, re.MULTILINE))
    assert {GATES[name] for name in (*EQUIVALENCE_GATES, "flops.ratio")} <= judged <= set(GATES.values())


def test_the_options_of_the_bundle_exist() -> None:
    source = (ROOT / "pipeline/stages/bundle/device/infer.py").read_text(encoding="utf-8")
    lines = {line for text in TEXTS.values() for line in (*inline_code(text), *code_lines(text)) if "infer.py" in line}
    named = {option for line in lines for option in re.findall(r"--[a-z]+", line.partition("infer.py")[2])}
    assert named >= {"--selftest", "--image"}
    assert {option for option in named if f'"{option}"' not in source} == set()


def test_options_named_alone_belong_to_some_command() -> None:
    parameters = [parameter for command in cli.commands.values() for parameter in command.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    named = {c.split()[0] for text in TEXTS.values() for c in inline_code(text) if re.match(r"--[a-z]", c)}
    assert "--quiet" in named
    assert named <= known


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_a_yaml_block_is_a_configuration(block: str, here: Path) -> None:
    (here / "block.yaml").write_text(block, encoding="utf-8")
    assert isinstance(load_config(here / "block.yaml"), Config)


def test_the_reference_shows_every_key_with_its_default() -> None:
    whole = yaml.safe_load(blocks(TEXTS["docs/reference/configuration.md"], "yaml")[0])
    config = load_config(None, {"model.name": "resnet50", "target_flops": 0.3})
    fields = {"model": type(config.model).model_fields, "data": type(config.data).model_fields}
    assert {name: set(whole[name]) for name in fields} == {name: set(known) for name, known in fields.items()}
    assert parse_config(whole) == config
    assert whole.keys() == type(config).model_fields.keys()


def test_the_reference_lists_every_recipe() -> None:
    page = TEXTS["docs/reference/configuration.md"]
    assert set(re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE)) == set(recipe_names())


def test_the_reference_lists_every_environment_variable() -> None:
    rows = re.findall(
        r"^\| `(ATOPIPE_\w+)` \| `(--[\w-]+)` \|\s*`?([\w.]*)`?\s*\|$", TEXTS["docs/reference/configuration.md"], re.M
    )
    options = [parameter for parameter in cli.commands["run"].params if parameter.envvar]
    keys = {flag: path for path, flag in FLAGS.items()}
    assert set(rows) == {(str(p.envvar), p.opts[0], keys.get(p.opts[0], "")) for p in options}


def test_the_reference_lists_every_source_of_data() -> None:
    assert [name for name in source_names() if name not in TEXTS["docs/reference/configuration.md"]] == []


def test_the_examples_of_own_code_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    pages = ("docs/how-to/own-network.md", "docs/how-to/own-data.md")
    for body in (body for page in pages for body in blocks(TEXTS[page], "python")):
        name, _, code = body.removeprefix("# ").partition("\n")
        (here / name).write_text(code, encoding="utf-8")
    assert main(["inspect", "--model", "tiny:net", "--data", "noise:two_kinds", "--threads", "1"]) == 0


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_named_files_exist(page: str) -> None:
    links = [link for link in LINK.findall(TEXTS[page]) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    named = [code.split()[0] for code in inline_code(TEXTS[page]) if code.startswith(FOLDERS)]
    assert missing + [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", TEXTS)
def test_the_sections_that_links_name_exist(page: str) -> None:
    for link, section in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", TEXTS[page]):
        target = (ROOT / page).parent.joinpath(link) if link else ROOT / page
        assert section in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}#{section}"


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_only_the_main_pages_are_unlinked() -> None:
    linked = {
        (ROOT / page).parent.joinpath(link).resolve() for page, text in TEXTS.items() for link in LINK.findall(text)
    }
    assert {path for path in (ROOT / "docs").rglob("*") if path.is_file()} <= linked


def writable_metrics() -> set[str]:
    """Patterns of the names that stages, run directory and gates give to metrics; `{...}` in them may be any word."""
    others = [ROOT / "pipeline/rundir/record.py", ROOT / "validate/latency.py"]
    paths = [*(ROOT / "pipeline/stages").rglob("*.py"), *others]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    plain = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    built = {"".join(map(literal_part, node.values)) for node in nodes if isinstance(node, ast.JoinedStr)}
    names = {name for name in plain | built if METRIC.fullmatch(name.replace("WORD", "word"))}
    return {re.escape(name).replace("WORD", "[a-z0-9]+") for name in names}


def literal_part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "WORD"


def test_every_metric_named_can_be_written_and_every_one_written_is_named() -> None:
    patterns = writable_metrics()
    named = {code for text in TEXTS.values() for code in inline_code(text) if METRIC.fullmatch(code)}
    assert {name for name in named if not any(re.fullmatch(pattern, name) for pattern in patterns)} == set()
    assert {pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in named)} == set()


def test_the_fields_of_the_history_are_named() -> None:
    section = TEXTS["docs/reference/metrics.md"].partition("## history.json")[2].partition("##")[0]
    assert inline_code(section) == [field.name for field in fields(EpochRecord)]


def test_exit_codes_and_their_words_are_those_of_the_errors() -> None:
    words = dict(re.findall(r"^\s+\W*\w+\s+(\d+)\s{2}(.+)$", errors.__doc__ or "", re.MULTILINE))
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", TEXTS["docs/reference/exit-codes.md"], re.MULTILINE))
    assert set(rows) == {*words, "0", str(errors.EXPORT_OR_PARITY)}
    assert {code for code, meaning in words.items() if meaning not in rows[code]} == set()
    codes = {value.exit_code for value in vars(errors).values() if hasattr(value, "exit_code")}
    assert {int(code) for code in rows} == codes | {0} | set(failures.LEAF_EXIT_CODES.values())


def test_the_table_of_layers_names_every_package() -> None:
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").glob("*/__init__.py")}
    layers = TEXTS["CONTRIBUTING.md"].partition("## Layers")[2].partition("Within")[0]
    named = {code.rstrip("/") for code in inline_code(layers) if code.startswith("pipeline/")}
    assert named == {*packages, "pipeline/api.py"}


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert version is not None
    assert re.search(rf"^## {re.escape(version[1])}\b", TEXTS["CHANGELOG.md"], re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_no_page_names_a_place_on_somebodys_machine(page: str) -> None:
    assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work|usr|Users)/", TEXTS[page])
