"""Join the timings of several pytest-benchmark runs and print them as a table.

    python bench/table.py JOINED.json RUN.json...

One row per benchmark: its median, and how many times as long it takes as the fastest
of its group, which is the same work done another way.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def join(runs):
    """One run that holds the benchmarks of all, without the machine's own name."""
    whole = dict(runs[0])
    whole["machine_info"].pop("node", None)
    whole["benchmarks"] = [b for run in runs for b in run["benchmarks"]]
    return whole


def rows(run):
    """Yield (group, name, median in ms, times the fastest of the group)."""
    groups = defaultdict(list)
    for benchmark in run["benchmarks"]:
        median = benchmark["stats"]["median"] * 1e3
        groups[benchmark["group"] or "-"].append((median, benchmark["name"]))
    for group, members in groups.items():
        for median, name in sorted(members):
            yield group, name, median, median / min(members)[0]


def main(joined, *paths):
    run = join([json.loads(Path(path).read_text()) for path in paths])
    Path(joined).write_text(json.dumps(run, indent=1))
    print(
        f"{run['datetime'][:10]}, {run['machine_info']['cpu'].get('brand_raw', '')}\n"
    )
    print(
        "| work | method | median ms | times the fastest |\n| --- | --- | --: | --: |"
    )
    for group, name, median, ratio in rows(run):
        print(f"| {group} | {name} | {median:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
