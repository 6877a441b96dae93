"""docs/data.md: its code runs as printed, in the order of the page."""

import re
import subprocess
import sys
from pathlib import Path

from data.files import make_tar, picture, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_python_of_the_page_runs_and_says_what_it_promises(tmp_path):
    names = ["dog.png", "a/cat.png", *(f"{i}.png" for i in range(10))]
    write(tmp_path / "pictures", {name: picture(i) for i, name in enumerate(names)})
    for number in range(2):
        members = {"0.png": picture(number), "0.txt": f"caption {number}"}
        make_tar(tmp_path / f"shards/shard-{number:03}.tar", members)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "12 (24, 16)"
    assert lines[1] == "0 torch.Size([8, 3, 64, 64]) 0"
    assert lines[5] == "2 caption 0"
    assert lines[-1] == "True"
    assert len([*(tmp_path / "lists").iterdir()]) == 2
