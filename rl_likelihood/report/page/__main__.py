"""The command of the page: see the package."""

import argparse
import sys

from rl_likelihood.errors import exits
from rl_likelihood.report import page, plots, table


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rl_likelihood.report.page", description="A page of one or several runs.")
    parser.add_argument("run_dir", nargs="+", help="the --workdir of a run")
    parser.add_argument("--out", type=plots.named_path, required=True, help="the page, as report.html")
    args = parser.parse_args(argv)
    runs = [table.Run({"run": name}, workdir) for name, workdir in plots.names_of(args.run_dir).items()]
    for run in runs:
        plots.load(run.workdir)  # refuses a folder that holds no run
    blocks = [table.stages(run) for run in runs if table.evaluations(run.workdir)]
    title = ", ".join(run.labels["run"] for run in runs)
    page.write(args.out, page.Contents(title, "", "run", blocks), runs, one_start=False)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
