"""Tables and plots of fine-tuning: `python scripts/report.py results.jsonl [runs=[runs/a,runs/b]] [out=report]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_report import ReportConfig
from bertchen.errors import UserError, user_errors

USAGE = "python scripts/report.py results.jsonl [more.jsonl …] [out=report] [runs=[…]] [tasks=[…]] [key.sub=value …]"
YAML_ENDINGS = (".yaml", ".yml")


def main(argv: list[str]) -> None:
    """Prints the tables, and writes them with the pictures into `out`."""
    files = [item for item in argv if "=" not in item and not item.startswith("-") and not item.endswith(YAML_ENDINGS)]
    config = load_config(ReportConfig, [item for item in argv if item not in files], USAGE)
    config.value.results = list(dict.fromkeys([*files, *config.value.results]))
    if not config.value.results and not config.value.runs:
        raise UserError(f"no file with results is given; usage: {USAGE}")
    if not config.value.out:
        config.fail("out", "name the folder to write")

    from bertchen.report.task_report import make_report, write_report  # takes seconds

    report = make_report(config)
    print(report.markdown(with_pictures=False))
    paths = write_report(report, config.value.out)
    print(f"written to {config.value.out}: {paths[-1].name}, {len(paths) - 1} tables and pictures")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
