"""Converts text into shards: `python scripts/convert_dataset.py yamls/data/local.yaml source.path=… …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import user_errors

USAGE = (
    "python scripts/convert_dataset.py yamls/data/local.yaml source.path=FILES tokenizer=FOLDER out=FOLDER "
    "[key=value …]"
)


def main() -> None:
    with user_errors():
        config = load_config(ConvertConfig, sys.argv[1:], USAGE)
        # Here, so that a wrong key is told at once.
        from bertchen.conversion.convert import convert, show_manifest
        from bertchen.conversion.light_streaming import import_streaming_lightly

        import_streaming_lightly()  # this process is the conversion's alone
        manifest = convert(config)
        if manifest is not None:
            print(show_manifest(manifest))
            print(f"\nwritten to {config.value.out}")


if __name__ == "__main__":
    main()
