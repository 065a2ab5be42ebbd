"""Writes sample text in German for the demo: `python scripts/write_sample.py out=corpus characters=3000000`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_sample import SampleConfig
from bertchen.errors import user_errors
from bertchen.text.sample import write_sample

USAGE = "python scripts/write_sample.py out=FOLDER [characters=3000000] [seed=42] [overwrite=true]"


def main() -> None:
    with user_errors():
        config = load_config(SampleConfig, sys.argv[1:], USAGE)
        settings = config.value
        if settings.characters < 1:
            config.fail("characters", "should be at least 1")
        paths = write_sample(settings.out, settings.seed, settings.characters, settings.overwrite)
        print("\n".join(paths))


if __name__ == "__main__":
    main()
