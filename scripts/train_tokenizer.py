"""Trains BERTchen's tokenizer: `python scripts/train_tokenizer.py yamls/tokenizer.yaml input=… out=…`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_tokenizer import TokenizerConfig
from bertchen.errors import user_errors

USAGE = "python scripts/train_tokenizer.py yamls/tokenizer.yaml input=FILES out=FOLDER [key=value …]"


def main() -> None:
    with user_errors():
        config = load_config(TokenizerConfig, sys.argv[1:], USAGE)
        from bertchen.tokenizer.training import show_report, train_from_files  # takes seconds to import

        print(show_report(train_from_files(config)))
        print(f"\nwritten to {config.value.out}")


if __name__ == "__main__":
    main()
