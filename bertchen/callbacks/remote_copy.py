"""Copies a run to an object store while it trains; what stands there is whole whenever the run is killed."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger

from bertchen.callbacks.checkpoints import Saved, sizes
from bertchen.errors import UserError
from bertchen.run_store import Content, RunStore, StoredCheckpoint, content_of
from bertchen.stores import StoreError, StoreGone, hidden, said

log = logging.getLogger(__name__)

# [s] without progress after which a run that ends otherwise than at its end waits for the store no longer.
GRACE_SECONDS = 30.0
ASIDE = ".upload"  # folder in the run's
_POLL = 0.1


class RemoteCopy(Callback):
    """On the first process, one thread that uploads each checkpoint with the metrics that belong to it.

    Training never waits for it: of checkpoints that come faster than they are uploaded, the newest counts. While the
    store is gone, training goes on; the next checkpoint is tried again. `finish` waits for the last one.

    Args:
        store: the run's.
        folder: of the run on this machine.
        keep: checkpoints in the store.
        logs: files in `folder` that grow, as metrics.jsonl.
        load_path: the checkpoint that the run goes on from; it is uploaded if the store lacks it.

    Attributes:
        waits_at_close: where a run is closed before its end, the last checkpoint gets its chance, as long as uploading
            goes on. False where `finish` will be called.
    """

    def __init__(
        self, store: RunStore, folder: Path, keep: int, logs: Sequence[Path], load_path: str | None = None
    ) -> None:
        self.store = store
        self.folder = folder
        self.keep = keep
        self.logs = logs
        self._adopted = load_path
        self._next: Saved | None = None
        self._failed: tuple[Saved, UserError] | None = None
        self._busy = False
        self._ending = False
        self.waits_at_close = True
        self._progress = time.monotonic()
        self._changed = threading.Condition()
        shutil.rmtree(folder / ASIDE, ignore_errors=True)  # that of a run that was killed
        threading.Thread(target=self._work, daemon=True, name="remote copy").start()

    def checkpoint_saved(self, saved: Saved) -> None:
        """Lets a checkpoint be uploaded. Its file may be removed at once."""
        aside = self.folder / ASIDE / saved.path.name
        aside.parent.mkdir(exist_ok=True)
        aside.unlink(missing_ok=True)
        try:
            os.link(saved.path, aside)
        except OSError:  # a file system without hard links: it is uploaded if it is not removed before
            aside = saved.path
        with self._changed:
            superseded = [self._next, self._failed[0] if self._failed else None]
            self._next, self._failed = replace(saved, path=aside), None
            self._changed.notify_all()
        for older in superseded:
            self._remove_aside(older)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._upload_adopted(state)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._upload_adopted(state)

    def finish(self, files: Sequence[str] = ()) -> None:
        """Waits until the last checkpoint is in the store, and uploads the logs to their end, and other files.

        Args:
            files: names below the run's folder.

        Raises:
            StoreGone: it was gone for as long as its patience; the same command with autoresume=true goes on.
            StoreError: it refuses.
        """
        if self._is_waiting():
            print(f"uploading to {hidden(self.store.url)}", flush=True)
        self._try_failed_again()
        while self._is_waiting():
            time.sleep(_POLL)
        error = self._failed[1] if self._failed else None
        try:
            if error is None:
                for name in (*(path.name for path in sizes(self.logs)), *files):
                    self.store.put(self.folder / name, name)
        except StoreError as failure:
            error = failure
        if error is not None:
            message = f"{error}; all of the run lies in {self.folder}, and autoresume=true uploads what is missing"
            raise (StoreGone if isinstance(error, StoreGone) else StoreError)(message) from error

    def post_close(self) -> None:
        if not self.waits_at_close:
            return
        self._progress = time.monotonic()
        self._try_failed_again()
        while self._is_waiting() and time.monotonic() - self._progress < GRACE_SECONDS:
            time.sleep(_POLL)
        if self._is_waiting() or self._failed:
            log.warning("the last checkpoint isn't in %s, but in %s", hidden(self.store.url), self.folder)

    def _upload_adopted(self, state: State) -> None:
        """Once the logs have been cut to what belongs to the checkpoint that was loaded, which loggers do at a start.

        That is after the callbacks have heard of it.
        """
        if self._adopted is not None:
            path, self._adopted = Path(self._adopted), None
            self.checkpoint_saved(Saved(path, state.timestamp.batch.value, sizes(self.logs)))

    def _is_waiting(self) -> bool:
        with self._changed:
            return self._busy or self._next is not None

    def _try_failed_again(self) -> None:
        with self._changed:
            self._ending = True
            if self._failed and self._next is None:
                self._next, self._failed = self._failed[0], None
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                saved, self._next, self._busy = self._next, None, True
            assert saved is not None
            error: UserError | None = None
            try:
                self._upload(saved)
            except UserError as failure:
                error = failure
            except Exception as failure:  # a thread that ends would be missed by nobody
                error = StoreError(f"{hidden(self.store.url)}: uploading failed: {said(failure)}")
            with self._changed:
                self._busy = False
                if error is not None and self._next is None:
                    if not self._ending:
                        log.warning("%s; training goes on, the next checkpoint will be tried", error)
                    self._failed = saved, error
                else:
                    self._remove_aside(saved)

    def _upload(self, saved: Saved) -> None:
        logs = {path.name: _beginning(path, size) for path, size in saved.logs.items()}
        checkpoint = StoredCheckpoint(
            saved.path.name,
            saved.step,
            content_of(saved.path),
            {name: Content.of(content) for name, content in logs.items()},
        )
        before = self.store.checkpoints()
        if before and before[0] == checkpoint:
            return
        self.store.put(saved.path, checkpoint.name, self._note_progress)
        for name, content in logs.items():
            self.store.put_bytes(name, content)
        # Later ones are of a run that went on from here before, and came to nothing.
        earlier = [each for each in before if each.step < checkpoint.step]
        self.store.name_checkpoints([checkpoint, *earlier][: self.keep])
        log.info("step %d is in %s", checkpoint.step, hidden(self.store.url))

    def _note_progress(self) -> None:
        self._progress = time.monotonic()

    def _remove_aside(self, saved: Saved | None) -> None:
        if saved is None or saved.path.parent.name != ASIDE or (self._next and self._next.path == saved.path):
            return
        saved.path.unlink(missing_ok=True)


def _beginning(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)
