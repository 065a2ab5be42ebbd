"""What watches or ends training. `build_callbacks` resolves the names of a YAML."""

from bertchen.callbacks.metrics_file import MetricsFile
from bertchen.callbacks.owed_evaluation import OwedEvaluation
from bertchen.callbacks.peak_memory import PeakMemory
from bertchen.callbacks.stage_data import StageData
from bertchen.callbacks.step_seed import StepSeed
from bertchen.callbacks.stop_after import StopAfter
from bertchen.callbacks.task_evaluation import EarlyStopping, TaskEvaluation
from bertchen.callbacks.throughput import Throughput

__all__ = [
    "EarlyStopping",
    "MetricsFile",
    "OwedEvaluation",
    "PeakMemory",
    "StageData",
    "StepSeed",
    "StopAfter",
    "TaskEvaluation",
    "Throughput",
]
