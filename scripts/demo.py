"""`make demo`: every step from text to a model folder, small, by the commands that a user would type."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertchen.config import load_config
from bertchen.errors import UserError, user_errors
from bertchen.report.metrics import last_value, median_value, read_metrics

USAGE = "python scripts/demo.py [folder=demo] [characters=4000000] [steps=600]"
ROOT = Path(__file__).resolve().parents[1]
MARKER = ".bertchen-demo"  # only a folder that holds this is ever removed
SENTENCE = "Die Lehrerin erklärt dem Schüler die [MASK]."

# Runs in a process of its own that can't see this package: what a stranger does with the exported folder.
FILL_MASK = """
import sys, warnings
warnings.filterwarnings("ignore")
from transformers import pipeline, logging
logging.set_verbosity_error()
fill = pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
print(sys.argv[2])
for guess in fill(sys.argv[2], top_k=5):
    print(f"  {guess['score']:6.1%}  {guess['token_str']!r}")
"""


@dataclass
class DemoConfig:
    """Where the demo writes, how much text it makes, how long it trains."""

    folder: str = "demo"
    characters: int = 4_000_000
    vocab_size: int = 4096
    steps: int = 600
    seed: int = 42


def run(title: str, *command: str, cwd: Path = ROOT) -> None:
    """Shows a command, runs it, and ends the demo with its exit code if it fails."""
    shown = " ".join(part if " " not in part else f"'{part}'" for part in command)
    print(f"\n\033[1m== {title}\033[0m\n$ python {shown}\n", flush=True)
    status = subprocess.run([sys.executable, *command], cwd=cwd, check=False).returncode
    if status:
        sys.exit(status)


def main(argv: list[str]) -> None:
    """Sample text, tokenizer, shards, pretraining, export, and a mask filled in a fresh process."""
    cfg = load_config(DemoConfig, argv, USAGE).value
    folder = Path(cfg.folder)
    prepare(folder)
    started = time.monotonic()

    corpus, tokenizer, mds, run_folder, model = (
        str(folder / name) for name in ("corpus", "tokenizer", "mds", "run", "model")
    )
    run(
        "1/6 Sample text",
        "scripts/write_sample.py",
        f"out={corpus}",
        f"characters={cfg.characters}",
        f"seed={cfg.seed}",
    )
    run(
        "2/6 Tokenizer", "scripts/train_tokenizer.py", "yamls/tokenizer.yaml", f"input={corpus}", f"out={tokenizer}",
        f"vocab_size={cfg.vocab_size}",
    )  # fmt: skip
    run(
        "3/6 Shards", "scripts/convert_dataset.py", "yamls/data/local.yaml", f"source.path={corpus}",
        f"tokenizer={tokenizer}", f"out={mds}", "block_size=128", "val_blocks=256",
    )  # fmt: skip
    run(
        "4/6 Pretraining", "main.py", "yamls/pretrain.yaml", "yamls/demo.yaml", f"data.local={mds}",
        f"tokenizer={tokenizer}", f"save_folder={run_folder}", f"max_duration={cfg.steps}ba",
    )  # fmt: skip
    run("5/6 Export", "scripts/export_hf.py", f"{run_folder}/latest-rank0.pt", model)
    fresh = ["-I", "-c", FILL_MASK, str((ROOT / model).resolve()), SENTENCE]
    print("\n\033[1m== 6/6 Fill a mask, in a fresh process without this package\033[0m\n", flush=True)
    status = subprocess.run([sys.executable, *fresh], cwd="/", check=False).returncode
    if status:
        sys.exit(status)
    print(summary(Path(run_folder), Path(mds), [corpus, tokenizer, mds, run_folder, model], time.monotonic() - started))


def prepare(folder: Path) -> None:
    """Makes an empty folder, in the place of an earlier demo's if there is one.

    Raises:
        UserError: there is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"folder={folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise UserError(f"folder={folder} isn't empty and isn't the demo's: give another one")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def summary(run_folder: Path, mds: Path, folders: list[str], seconds: float) -> str:
    """Validation loss before and after beside the unigram entropy, speed, folders, and what to type next."""
    rows = read_metrics(run_folder / "metrics.jsonl")
    key = "metrics/eval_128/MaskedCrossEntropy"
    losses = [row[key] for row in rows if key in row]
    entropy = json.loads((mds / "manifest.json").read_text())["unigram_entropy_nats"]
    rate = median_value(rows, "throughput/tokens_per_sec")
    return "\n".join(
        [
            "",
            "\033[1m== Done\033[0m",
            f"validation loss   {losses[0]:.3f} before, {losses[-1]:.3f} after {int(last_value(rows, 'step'))} steps",
            f"unigram entropy   {entropy:.3f} (what guessing by frequency alone would reach)",
            f"speed             {rate:,.0f} tokens/s",
            f"time              {seconds:.0f} s",
            "folders           " + "\n                  ".join(folders),
            "next              composer main.py yamls/pretrain.yaml data.local=… tokenizer=… save_folder=runs/first",
            "                  with your own text: see README.md",
        ]
    )


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
