"""Fine-tunes models for tasks: `python scripts/evaluate.py yamls/evaluate.yaml models=[…] tasks=all seeds=5`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_evaluate import EvaluateConfig
from bertchen.errors import EXIT_CODE, user_errors
from bertchen.signals import stop_signals

USAGE = "python scripts/evaluate.py yamls/evaluate.yaml models=[MODEL,…] [tasks=[TASK,…]] [seeds=5] [key=value …]"


def main() -> None:
    failed = []
    with user_errors():
        config = load_config(EvaluateConfig, sys.argv[1:], USAGE)
        # Here, so that a wrong key is told at once.
        from bertchen.report.sweep_table import sweep_tables
        from bertchen.train.sweep import plan, sweep

        # After Composer's import, which listens for itself. The run that is under way is stopped too, and saved.
        stop_signals.listen()
        runs = plan(config)
        if config.value.dry_run:
            to_do = [run for run in runs if run.missing]
            print("\n".join([*map(str, to_do), f"{len(to_do)} of {len(runs)} runs to do; none was started"]))
            return
        failed = sweep(runs, config, lambda line: print(line, flush=True))
        print(sweep_tables(config.value.results, {run.hash for run in runs}), flush=True)
        for run in failed:
            print(f"failed: {run}; {run.log} says why", file=sys.stderr)
    if failed:
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
