"""`tokenflow bench`: the ops beside everything people could use instead."""

from typing import Annotated

import typer

from tokenflow.cli._options import Json, note, say_json

app = typer.Typer()


@app.command()
def bench(
    op: Annotated[
        list[str] | None, typer.Option(help="An op; may be repeated. All if not given.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Cases whose label contains this.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Methods whose name contains this, and ours."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="Data of searches: a family's name, or all."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short samples, for orientation.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of everybody; torch's default if not given."),
    ] = None,
    isa: Annotated[
        str | None, typer.Option(help="Instruction set of our CPU kernels.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    list_cases: Annotated[
        bool,
        typer.Option("--list", help="Name the ops, cases and methods; run nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Time the ops beside their peers, each in its own process; one table an op."""
    from tokenflow.benchmark import families, harness, machine, ops, table
    from tokenflow.benchmark.method import load

    wanted = op or ops.names()
    if unknown := sorted({*wanted} - {*ops.names()}):
        raise typer.BadParameter(f"--op: {unknown[0]} is none of {ops.names()}")
    if family == ["all"]:
        family = list(families.FAMILIES)
    if unknown := sorted({*(family or [])} - {*families.FAMILIES}):
        raise typer.BadParameter(
            f"--family: {unknown[0]} is none of {list(families.FAMILIES)}"
        )
    setting = _setting(threads, isa, device)
    protocol = harness.QUICK if quick else harness.Protocol()
    where = machine.describe(setting.threads, setting.isa, setting.device)
    found, wrong = [], []
    for name in wanted:
        module = load(name)
        if list_cases:
            typer.echo(f"{name}: {', '.join(m.name for m in module.method)}")
            for values in harness.expand(module, family or ()):
                typer.echo(f"  {module.LABEL.format(**values)}")
            continue
        results = harness.run_op(
            name,
            setting,
            protocol,
            cases=case or (),
            families=family or (),
            only=method or (),
            note=note,
        )
        if not as_json and results:
            typer.echo(table.as_text(name, results, where, _story(module)) + "\n")
        found += results
        wrong += [line for result in results for line in result.faults()]
    if list_cases:
        return
    if as_json:
        say_json(
            {
                "machine": where,
                "command": machine.command(),
                "protocol": {**vars(protocol), "noise": harness.noise_note()},
                "results": [result.as_json() for result in found],
            }
        )
    for line in wrong:
        note(f"failed: {line}")
    if wrong:
        raise typer.Exit(1)


def _setting(threads, isa, device):  # type: ignore[no-untyped-def]
    import torch

    import tokenflow_ext
    from tokenflow.benchmark.harness import Setting

    isas = tokenflow_ext.info()["isas"]
    if isa is not None and isa not in isas:
        raise typer.BadParameter(f"--isa: {isa} is none of {isas}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise OSError("no GPU that torch could use is here")
    return Setting(device, threads or torch.get_num_threads(), isa)


def _story(module) -> str:  # type: ignore[no-untyped-def]
    return (module.__doc__ or "").strip()
