"""Exports a checkpoint to Hugging Face: `python scripts/export_hf.py runs/first/latest-rank0.pt model`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_export import ExportConfig, as_overrides
from bertchen.errors import user_errors

USAGE = "python scripts/export_hf.py CHECKPOINT FOLDER [key=value …]"


def main() -> None:
    with user_errors():
        config = load_config(ExportConfig, as_overrides(sys.argv[1:], USAGE), USAGE)
        from bertchen.export.hf import export_from_config  # takes seconds to import

        print(f"written to {export_from_config(config)}")


if __name__ == "__main__":
    main()
