"""The README's Python runs as printed, and what it points at exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ASKED = re.findall(r"^\$ tokenflow answer (.*)\n(.+)$", README, re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_python_to_run():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.splitlines()[0])
def test_the_python_runs_as_printed(block, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
def test_every_relative_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("words, said", ASKED)
def test_questions_are_answered_as_printed(words, said):
    command = Path(sys.executable).parent / "tokenflow"
    run = subprocess.run(
        [command, "answer", *shlex.split(words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == said


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"^tokenflow (\w+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [Path(sys.executable).parent / "tokenflow", "--help"],
        capture_output=True,
        text=True,
    ).stdout
    assert commands
    assert [c for c in commands if c not in help_text] == []
