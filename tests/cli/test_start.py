"""Before any command: discovery, a quick start, and what is said when it cannot."""

import os
import shutil
import subprocess
import sys

import pytest

import tokenflow.cli


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_help_loads_neither_torch_nor_pictures():
    done = python(
        "import sys\n"
        "from tokenflow.cli import build\n"
        "commands = build().registered_commands\n"
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'tqdm'} & set(sys.modules)\n"
        "print(len(commands) >= 6, sorted(heavy))"
    )
    assert done.stdout == "True []\n", done.stderr


def test_every_file_is_a_command_named_like_it(run, tmp_path, monkeypatch):
    (tmp_path / "greet.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef anything(name: str):\n    print('hello', name)\n"
    )
    (tmp_path / "many.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef one():\n    print(1)\n"
        "@app.command()\ndef two():\n    print(2)\n"
    )
    (tmp_path / "group.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.callback()\ndef group():\n    pass\n"
        "@app.command()\ndef only():\n    print(3)\n"
    )
    (tmp_path / "_shared.py").write_text("raise RuntimeError('no command')\n")
    monkeypatch.setattr(
        tokenflow.cli, "__path__", [*tokenflow.cli.__path__, str(tmp_path)]
    )
    assert run("greet", "you").out == "hello you\n"
    assert run("many", "two").out == "2\n"
    assert run("group", "only").out == "3\n"


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["encode", "photos"],  # without --out
        ["encode", "-o", "out"],  # without a picture
        ["encode", "photos", "-o", "out", "--batch-size", "0"],
        ["encode", "photos", "-o", "out", "--resize", "melt"],
        ["convert", "a.pt", "out", "--dtype", "int8"],
        ["demo", "--device", "abacus"],
        ["info", "--loud"],
    ],
    ids=" ".join,
)
def test_wrong_words_are_usage(run, photos, words):
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert "Error" in err and "Traceback" not in err


def test_a_missing_library_is_named_with_its_extra(run, photos, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, out, err = run("encode", "photos", "-o", "out", "--model", model)
    assert (code, out) == (3, "")
    assert err == (
        "tokenflow: tqdm is needed and not installed; "
        "run: pip install 'tokenflow-ext[models]'\n"
    )


def test_without_typer_the_command_line_says_so(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = run("info")
    assert code == 3 and "pip install 'tokenflow-ext[models]'" in err


def test_no_such_model_is_the_environment(run, photos):
    code, out, err = run("encode", "photos", "-o", "out", "--model", "nothing")
    assert (code, out) == (3, "")
    assert "'nothing'" in err and "no folder" in err
    assert not (photos.parent / "out").exists()


def test_a_damaged_model_is_the_environment(run, photos, model, tmp_path):
    shutil.copytree(model, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, out, err = run("encode", "photos", "-o", "out", "--model", "./cut")
    assert (code, out) == (3, "")
    assert "./cut" in err and "Traceback" not in err


def test_a_gpu_that_is_not_there_is_the_environment(run, photos, model):
    words = ["encode", "photos", "-o", "out", "--model", model]
    code, _, err = run(*words, "--device", "cuda:99")
    assert code == 3 and "cuda:99" in err


def test_missing_kernels_are_a_line_or_where_required_an_error():
    code = (
        "import sys; sys.modules['tokenflow_ext._C'] = None\n"
        "from tokenflow.cli import main\n"
        "sys.argv = ['tokenflow', 'info']; main()"
    )
    told = python(code, TOKENFLOW_EXT_REQUIRE_KERNELS="0")
    assert told.returncode == 0 and "\nkernels          import of" in told.stdout
    assert told.stderr == ""
    refused = python(code, TOKENFLOW_EXT_REQUIRE_KERNELS="1")
    assert refused.returncode == 3 and refused.stdout == ""
    assert "kernels are missing" in refused.stderr


def test_a_broken_command_is_not_hidden(run, tmp_path, monkeypatch):
    (tmp_path / "fall.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef fall():\n    raise KeyError('a fault of ours')\n"
    )
    monkeypatch.setattr(tokenflow.cli, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["tokenflow", "fall"])
    with pytest.raises(KeyError):
        tokenflow.cli.main()
