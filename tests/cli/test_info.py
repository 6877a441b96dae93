"""`tokenflow info`: facts, for people and for programs."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

import tokenflow_ext
from tokenflow import foreign
from tokenflow.cli import info


def test_json_has_every_fact(run):
    code, out, err = run("info", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["tokenflow"] == tokenflow_ext.__version__
    assert facts["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    ours = tokenflow_ext.info()
    assert [facts[name] for name in ("kernels", "isa", "isas", "threads")] == [
        ours[name] for name in ("kernels", "isa", "isas", "threads")
    ]
    assert (facts["cuda_built"] or "") == ours["build"].get("cuda", "")
    if not torch.cuda.is_available():
        assert facts["cuda_usable"] is False and facts["cuda_device"] is None
    assert facts["conflict"] is None


def test_a_line_for_each_fact(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == list(info.gather())


def test_extras_say_what_they_lack(run, monkeypatch):
    found = info.extras(foreign.OURS)
    assert {"models", "train", "eval", "demo"} <= set(found)
    assert found["models"] == []

    def without(distribution):
        if distribution == "tqdm":
            raise PackageNotFoundError(distribution)
        return version(distribution)

    monkeypatch.setattr(info, "version", without)
    lacking = info.extras(foreign.OURS)
    assert lacking["models"] == ["tqdm"] and "tqdm" in lacking["train"]
    assert "demo (lacks tqdm)" in run("info").out


def test_another_package_of_this_name_is_reported(run, monkeypatch):
    owners = {"tokenflow": [foreign.OURS, "tokenflow"]}
    monkeypatch.setattr(foreign, "packages_distributions", lambda: owners)
    assert (
        "pip uninstall tokenflow" in json.loads(run("info", "--json").out)["conflict"]
    )


@pytest.mark.parametrize("shipped", [[], ["mini", "other"]])
def test_shipped_models_are_listed(run, tmp_path, monkeypatch, shipped):
    for name in shipped:
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").touch()
    (tmp_path / "weights" / "unfinished").mkdir(parents=True)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert json.loads(run("info", "--json").out)["models"] == shipped
