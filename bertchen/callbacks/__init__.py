"""What watches or ends training. `build_callbacks` resolves the names of a YAML."""

from bertchen.callbacks.checkpoints import Checkpoints
from bertchen.callbacks.finite_loss import FiniteLoss
from bertchen.callbacks.metrics_file import MetricsFile
from bertchen.callbacks.owed_evaluation import OwedEvaluation
from bertchen.callbacks.peak_memory import PeakMemory
from bertchen.callbacks.remote_copy import RemoteCopy
from bertchen.callbacks.sample_ids import SampleIds
from bertchen.callbacks.stage_data import StageData
from bertchen.callbacks.step_seed import StepSeed
from bertchen.callbacks.stop_after import StopAfter
from bertchen.callbacks.task_evaluation import EarlyStopping, TaskEvaluation
from bertchen.callbacks.throughput import Throughput

__all__ = [
    "Checkpoints",
    "EarlyStopping",
    "FiniteLoss",
    "MetricsFile",
    "OwedEvaluation",
    "PeakMemory",
    "RemoteCopy",
    "SampleIds",
    "StageData",
    "StepSeed",
    "StopAfter",
    "TaskEvaluation",
    "Throughput",
]
