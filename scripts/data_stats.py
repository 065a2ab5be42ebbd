"""Figures about a corpus: `python scripts/data_stats.py mds` or `… yamls/data/local.yaml source.path=… tokenizer=…`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.config.schema_stats import FolderStatsConfig, StatsConfig
from bertchen.errors import UserError, user_errors

USAGE = "python scripts/data_stats.py FOLDER|yamls/data/CORPUS.yaml [key.sub=value …]"
YAML_ENDINGS = (".yaml", ".yml")


def main(argv: list[str]) -> None:
    """Shows the figures, and writes them where `out` is given."""
    folders = [item for item in argv if _names_folder(item)]
    if folders and (len(folders) > 1 or any(item.endswith(YAML_ENDINGS) for item in argv if "=" not in item)):
        raise UserError(f"{folders[0]}: give one converted folder alone, or YAML files; usage: {USAGE}")
    if folders and not os.path.isdir(folders[0]):
        raise UserError(f"{folders[0]}: no such folder, and no YAML file ({', '.join(YAML_ENDINGS)}); usage: {USAGE}")
    options = [item for item in argv if item not in folders]
    config = load_config(FolderStatsConfig if folders else StatsConfig, options, USAGE)

    # These take seconds to import.
    from bertchen.report.data_stats_folder import folder_stats
    from bertchen.report.data_stats_raw import raw_stats
    from bertchen.report.data_stats_view import check_out, show_stats, write_stats

    out = check_out(config)
    stats = folder_stats(folders[0], config) if folders else raw_stats(config)
    print(show_stats(stats))
    for path in write_stats(stats, out) if out else ():
        print(f"written to {path}")


def _names_folder(item: str) -> bool:
    return os.path.isdir(item) or ("=" not in item and not item.startswith("-") and not item.endswith(YAML_ENDINGS))


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
