"""Tokens a second, model FLOPs utilization and time left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist


def model_flops_utilization(tokens_per_second: float, parameters: int, devices: int, peak_flops: float) -> float:
    """MFU = 6 T P / (n F), the paper's: T tokens/s, P all parameters, embeddings included, n devices of peak F."""
    return 6 * tokens_per_second * parameters / (devices * peak_flops)


class Throughput(Callback):
    """Logs `throughput/seconds` since the start, `throughput/tokens_per_sec`, `throughput/mfu` and
    `time/remaining_seconds` after every step.

    Time is Composer's training time: steps, loading of data and checkpoints, without evaluation.

    Args:
        parameters: number of the model's parameters.
        peak_flops: of one device [FLOP/s]; None leaves MFU out.
        window: steps to average over.
        seconds_left: what another limit than `max_duration` leaves, if there is one.
    """

    def __init__(
        self,
        parameters: int,
        peak_flops: float | None,
        window: int = 10,
        seconds_left: Callable[[], float] | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window={window} should be at least 1")
        self.parameters = parameters
        self.peak_flops = peak_flops
        self.seconds_left = seconds_left
        # Times and tokens at the ends of the last `window` steps and of the one before them.
        self._ends: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._ends.append((state.timestamp.total_wct.total_seconds(), state.timestamp.token.value))
        logger.log_metrics({"throughput/seconds": self._ends[-1][0]})
        if len(self._ends) < 2:
            return
        seconds = self._ends[-1][0] - self._ends[0][0]
        rate = (self._ends[-1][1] - self._ends[0][1]) / max(seconds, 1e-9)
        logger.log_metrics({"throughput/tokens_per_sec": rate})
        if self.peak_flops:
            mfu = model_flops_utilization(rate, self.parameters, dist.get_world_size(), self.peak_flops)
            logger.log_metrics({"throughput/mfu": mfu})
        remaining = self._remaining(state, seconds / (len(self._ends) - 1))
        if remaining is not None:
            logger.log_metrics({"time/remaining_seconds": remaining})

    def _remaining(self, state: State, seconds_per_step: float) -> float | None:
        done = elapsed_share(state)
        if not done:
            return None
        by_duration = state.timestamp.batch.value * (1 - done) / done * seconds_per_step
        return min(by_duration, max(self.seconds_left(), 0.0)) if self.seconds_left else by_duration


def elapsed_share(state: State) -> float | None:
    """Share of `max_duration` that is over, 0 to 1; within an epoch too, if its length is known."""
    if state.max_duration is None:
        return None
    if state.max_duration.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        epochs = state.timestamp.epoch.value + state.timestamp.batch_in_epoch.value / state.dataloader_len.value
        return epochs / state.max_duration.value
    elapsed = state.get_elapsed_duration()
    return None if elapsed is None else elapsed.value
