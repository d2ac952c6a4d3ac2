"Names are data, terminals have encodings, and each command says what it did and how to call it."

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from spfpn.apps.cli import app, print_table
from spfpn.core.registry import PROTOCOLS
from spfpn.core.runs import RunFolder
from spfpn.show.pictures import detector_curves_picture

NAME = "サ é [red]x[nosuch] :smile:"  # two scripts, markup, no markup, an emoji's code
ENCODINGS = ("utf-8", "cp1252", "cp932", "ascii")
EVIL = ("[red]x[/red]", "[/x]", "x[", "[bold]", ":smile:", "a\nb", "\x1b[31m", "\udce9.png")


def call(*arguments, charset="utf-8"):
    return CliRunner(charset=charset).invoke(app, [str(a) for a in arguments])


def commands(command=None, names=()):
    "Every command and group of commands, with the words that call it."
    command = command or typer.main.get_command(app)
    yield names, command
    for name, part in getattr(command, "commands", {}).items():
        yield from commands(part, (*names, name))


COMMANDS = dict(commands())
LEAVES = [names for names, command in COMMANDS.items() if not hasattr(command, "commands")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder where each name is difficult: photographs, and a detector."
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    for k in range(2):
        image = Image.new("L", (96, 64), 20)
        image.paste(220, (30, 20, 70 + k, 50))
        image.save(Path(NAME, f"{k} {NAME}.png"))
    dots = "def dots(image):\n    return [[50.0, 30.0, 1.0], [30.0, 20.0, 0.5]]\n"
    Path(f"{NAME}.py").write_text(dots)
    return tmp_path


def spelled(text: str, charset: str) -> str:
    "What a terminal shows of a text: an escape for a character that it lacks."
    return text.encode(charset, "backslashreplace").decode(charset)


DETECTOR = f"{NAME}.py:dots"


@pytest.mark.parametrize("charset", ENCODINGS)
def test_every_command_prints_any_name_in_any_encoding(place, charset):
    measured = ("--sequences", f"warped:{NAME}", "--limit", "1", "--metrics", f"{NAME[:3]}.parquet")
    metrics = measured[-2:]
    for words, code, shown in (
        (("detect", NAME, "--detector", DETECTOR), 0, NAME),
        (("detect", NAME, "--detector", DETECTOR, "--csv"), 0, NAME),
        (("detect", NAME, "--detector", DETECTOR, "--overlay", "--out", NAME), 0, NAME),
        (("evaluate", "--detector", DETECTOR, "--detector", "harris", *measured), 0, DETECTOR),
        (("results", *metrics), 0, DETECTOR),
        (("compare", DETECTOR, "harris", *metrics), 0, DETECTOR),
        (("config", "-p", f"data.images={NAME}"), 0, NAME),
        (("detect", f"{NAME}.png"), 2, NAME),
        (("label", "-p", f"data.images=no {NAME}"), 2, NAME),
        (("list", NAME), 2, NAME),
        ((NAME,), 2, NAME),
        (("evaluate", "--detector", "fast", "--limit", NAME), 2, "evaluate"),
    ):
        result = call(*words, charset=charset)
        assert result.exit_code == code, (words, result.output, result.exception)
        assert isinstance(result.exception, (SystemExit, type(None)))
        flat = "".join(result.output.replace("│", "").replace("|", "").split())
        assert "".join(spelled(shown, charset).split()) in flat, words


def test_files_are_utf_8_whatever_the_terminal_shows(place):
    call("detect", NAME, "--detector", "harris", "--csv", "--json", "--out", "f", charset="cp932")
    table = pd.read_csv("f/keypoints.csv", encoding="utf-8")
    assert set(table.image) == {str(path) for path in Path(NAME).iterdir()}


@pytest.mark.skipif(os.name != "posix", reason="sets a locale")
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "cp932"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_redirected_stdout_of_a_real_process_is_never_empty(place, environment):
    command = [sys.executable, "-m", "spfpn", "detect", NAME, "--detector", DETECTOR, "--csv"]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | environment | {"PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"[red]x[") == 8, "folder and file, four times"


@pytest.mark.parametrize("name", EVIL)
def test_a_name_is_text_in_a_table(name, capsys):
    print_table({name: [1], "detector": [name]}, name)
    printed = capsys.readouterr().out
    plain = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert printed.count(plain) == 3 and "\x1b" not in printed


def test_a_name_is_text_in_the_steps_of_a_run(tmp_path, write_notebook, capsys):
    from spfpn.apps.workbook import run_workbook
    from spfpn.core.config import Config

    name = "01_[red]x:smile:[nosuch]"
    write_notebook(tmp_path / "nbs" / f"{name}.ipynb", 'run = ""', "1 + 1")
    run = RunFolder(tmp_path / "[red]run")
    run_workbook(Config(), run, notebooks=tmp_path / "nbs")
    printed = capsys.readouterr().out
    assert name in printed and "[red]run" in printed


def test_a_name_is_text_in_a_chart():
    names = ["$\\nosuch$ a", "_hidden", "x"]
    rows = pd.DataFrame({"detector": names, "x": [1, 2, 3], "y": [0.1, 0.2, 0.3]})
    pictures = [
        detector_curves_picture(rows.query("detector != @gone"), "x", "y") for gone in names
    ]
    assert len({picture.tobytes() for picture in pictures}) == 3


# ---- help, and what a command says


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example_that_can_be_typed(names):
    result = call(*names, "--help")
    assert result.exit_code == 0
    *_, last = filter(str.strip, result.output.splitlines())
    assert last.strip().startswith("Example: spfpn "), last
    words = shlex.split(last.partition("spfpn ")[2])
    assert tuple(words[: len(names)]) == names
    command, context = COMMANDS[()], None
    while hasattr(command, "commands"):
        name, command, words = words[0], command.commands[words[0]], words[1:]
    context = command.make_context(name, words)
    assert not context.args, "every word of it means something"


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_every_option_has_a_help(names):
    undocumented = [
        parameter.name
        for parameter in COMMANDS[names].params
        if not (getattr(parameter, "help", None) or "")
    ]
    assert not undocumented


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_the_help_of_protocol_lists_the_registered_ones(command, monkeypatch):
    monkeypatch.setitem(PROTOCOLS._entries, "Z9", PROTOCOLS.find("R1"))
    flat = "".join(call(command, "--help").output.replace("│", "").split())
    assert ",".join(PROTOCOLS.names()) in flat and "Z9" in flat


def test_detect_names_each_file_it_writes(place):
    files = ("--overlay", "--npz")
    result = call("detect", NAME, "--detector", "harris", *files)
    written = [line[6:] for line in result.output.splitlines() if line.startswith("wrote ")]
    assert len(written) == 4 and all(Path(name).is_file() for name in written)
    result = call("detect", NAME, "--detector", "harris", *files, "--json", "--csv", "--out", "f")
    written = [line[6:] for line in result.output.splitlines() if line.startswith("wrote ")]
    assert len(written) == 6 and all(Path(name).is_file() for name in written)


def test_points_on_stdout_stay_pure(place):
    result = call("detect", NAME, "--detector", DETECTOR, "--csv", "--overlay")
    assert "wrote" in result.stderr and "wrote" not in result.stdout
    assert result.stdout.startswith("image,x,y,score\n") and result.stdout.count("dots") == 0


def test_python_m_spfpn_is_the_command():
    command = [sys.executable, "-m", "spfpn", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Usage: spfpn " in done.stderr


def test_ctrl_c_is_not_silent(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("spfpn.apps.cli._start", stop)
    result = call("label")
    assert result.exit_code == 130 and result.output == "stopped\n"


# ---- tables of results


def rows_of(detector: str, values, errors, protocol="R1", kind="i") -> pd.DataFrame:
    "Rows as a protocol makes them."
    return pd.DataFrame(
        {
            "protocol": protocol,
            "set": "toy",
            "detector": detector,
            "sequence": [f"s{k}" for k in range(len(values))],
            "pair": 1,
            "kind": kind,
            "settings": "{}",
            "repeatability@3": values,
            "localization_error": errors,
            "n1": 10,
            "n2": 10,
        }
    )


@pytest.fixture
def measured(outputs):
    "measured(path, *rows): a file of metrics in the folder of outputs."

    def write(name: str, *parts: pd.DataFrame) -> Path:
        path = outputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(parts, ignore_index=True).to_parquet(path)
        return path

    return write


def test_tables_begin_with_the_best_detector_and_mark_each_best_value(measured):
    b, a = rows_of("b", [0.4, 0.6], [0.5, 0.5]), rows_of("a", [0.7, 0.9], [1.0, 1.5])
    c = rows_of("c", [0.1, 0.1], [0.5, 0.5])
    measured("metrics.parquet", b, a, c)
    result = call("results")
    assert not result.output.lstrip().startswith("{")
    table = [line.split() for line in result.output.splitlines() if " all " in line]
    assert [row[0] for row in table] == ["a", "b", "c"]
    assert table[0][3] == "0.800*" and "1.250" in table[0], "a lower error is better"
    assert "0.500*" in table[1] and "0.500*" in table[2] and "10*" not in result.output


def test_a_lone_detector_is_not_the_best_of_all(measured):
    measured("metrics.parquet", rows_of("a", [0.7, 0.9], [1.0, 1.5]))
    assert "0.800*" not in call("results").output and "0.800" in call("results").output


def test_compare_finds_the_rows_of_a_run(measured):
    a, b = rows_of("quick/phase2/best", [0.7] * 7, [1.0] * 7), rows_of("harris", [0.2] * 7, [1] * 7)
    measured("metrics.parquet", b)
    measured("quick/metrics.parquet", a, b)
    result = call("compare", "quick/phase2/best", "harris")
    assert result.exit_code == 0, result.output
    assert "quick/metrics.parquet" in result.output and "significant" in result.output


def test_compare_says_where_rows_are_and_what_writes_the_others(measured, outputs):
    measured("metrics.parquet", rows_of("harris", [0.2] * 7, [1] * 7))
    measured("quick/metrics.parquet", rows_of("shi", [0.2] * 7, [1] * 7))
    result = call("compare", "quick/phase2/best", "harris")
    assert result.exit_code == 2
    first, *others = result.output.splitlines()
    command = "spfpn evaluate --protocol R1 --detector quick/phase2/best --detector harris"
    assert f"`{command}` writes one" in first
    assert sorted(line.split(" has ")[1] for line in others) == ["harris by R1", "shi by R1"]
    checkpoint = outputs / "quick" / "phase2" / "best.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    again = call("compare", "quick/phase2/best", "harris")
    assert f"--detector {checkpoint}" in again.output, "what evaluate accepts"


@pytest.mark.parametrize("words", [("results",), ("compare", "a", "b")])
def test_without_metrics_the_error_names_who_writes_them(words):
    result = call(*words)
    assert result.exit_code == 2
    assert "`spfpn evaluate` writes" in result.output and "RUN/metrics.parquet" in result.output
