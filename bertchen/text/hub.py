"""Files of data sets of the Hugging Face Hub, or of local folders laid out like one.

Which files make up a configuration and split is decided by the `datasets` library, so it is what its users know. They
are read where they are, through `hf://`, at one commit. huggingface_hub takes the token from HF_TOKEN by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bertchen.config.load import nearest
from bertchen.errors import UserError
from bertchen.text.files import kind_of, resolve_paths

_TIMEOUT = 60.0


def hub_files(
    name: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    files: str | Sequence[str] | None = None,
) -> tuple[list[str], str | None]:
    """The files of a split of a data set, or those that match `files`, sorted.

    Args:
        name: a data set of the Hub, such as `allenai/c4`, or a local folder with a `README.md` or folders like one.
        config, split: as for `datasets.load_dataset`.
        revision: branch, tag or commit; the default branch without it.
        files: pattern or patterns of files in the repository, for repositories that `datasets` can't make sense of.

    Returns:
        Paths (of a local folder) or `hf://` URLs that name the commit; the commit, None for a folder.

    Raises:
        UserError: the data set, revision, configuration, split or a file isn't there; it is gated; the Hub can't be
            reached; files of a kind that isn't read.
    """
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if revision is not None:
            raise UserError(f"{name} is a local folder, which has no revision {revision}: leave revision out")
        commit, root = None, folder
    else:
        commit = _commit(name, revision)
        root = f"hf://datasets/{name}@{commit}"
    if files is None:
        paths = _files_of_split(name if commit else folder, commit, config, split)
    else:
        patterns = [files] if isinstance(files, str) else files
        paths = resolve_paths([f"{root}/{pattern.lstrip('/')}" for pattern in patterns])
    for path in paths:
        kind_of(path)
    if commit:
        _check_access(name, commit, paths[0].removeprefix(f"{root}/"))
    return paths, commit


def _commit(name: str, revision: str | None) -> str:
    """The commit of a revision of a data set that may be read."""
    from huggingface_hub import HfApi

    with _hub_errors(name, revision):
        commit = HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT).sha
    assert commit is not None
    _check_access(name, commit, "README.md")
    return commit


def _check_access(name: str, commit: str, path: str) -> None:
    """Anyone may ask about a gated data set, but not read its files."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(name, path, repo_type="dataset", revision=commit)
    with _hub_errors(name, commit), suppress(EntryNotFoundError):
        HfApi().get_hf_file_metadata(url=url, timeout=_TIMEOUT)


def _files_of_split(name: str, commit: str | None, config: str | None, split: str) -> list[str]:
    import datasets
    import yaml

    with _hub_errors(name, commit):
        try:
            builder = datasets.load_dataset_builder(name, config, revision=commit)
        except ValueError as error:
            raise _wrong_config(name, commit, config, error) from error
        except RuntimeError as error:
            raise UserError(f"{name}: {_first_line(error)}; name the files to read instead: files=PATTERN") from error
        except (FileNotFoundError, PermissionError, yaml.YAMLError) as error:
            raise UserError(f"{name}: {_first_line(error)}; files=PATTERN names files by hand") from error
    found: dict[Any, list[str]] = builder.config.data_files or {}
    splits = {str(key): paths for key, paths in found.items()}
    if split not in splits:
        known = ", ".join(splits) or "none"
        raise UserError(f"{name} has no split {split}; splits of {builder.config.name}: {known} (set split)")
    paths = sorted(set(splits[split]))
    return paths if commit or os.path.isabs(name) else [os.path.relpath(path) for path in paths]


def _wrong_config(name: str, commit: str | None, config: str | None, error: ValueError) -> UserError:
    import datasets

    known = datasets.get_dataset_config_names(name, revision=commit)
    if config is None and len(known) > 1:
        return UserError(f"{name} has several configurations: set config to one of {', '.join(known)}")
    if config is not None and config not in known:
        return UserError(f"{name} has no configuration {config}; {nearest(config, known)}")
    return UserError(f"{name}: {_first_line(error)}")


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turns the errors of asking the Hub into `UserError`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/datasets/{name}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its terms on {page}, and set the environment variable HF_TOKEN to a token of "
            "that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such data set on {constants.ENDPOINT}, and no such folder; if it is private, set the "
            "environment variable HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}; see {page}/commits/main") from error
    except HFValidationError:
        raise UserError(f"{name}: no such folder, and no name of a data set of the Hub (user/name)") from None
    except OSError as error:  # also those of requests, and of working offline
        raise UserError(
            f"{name}: the Hub ({constants.ENDPOINT}) can't be reached or doesn't answer: {_first_line(error)}; a "
            "folder with its files can stand in its place"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
