"""What came of a run: numbers and pictures from `metrics.jsonl`."""
