"""Single files of a model: from its folder, the local Hugging Face cache, or the hub."""

from __future__ import annotations

from pathlib import Path

from bert_train_parallel.errors import BadModel
from bert_train_parallel.model_names import MINILM

_PATIENCE = 5  # seconds for the hub's first answer


def model_file(place: Path | str, name: str) -> Path | None:
    """One file of a model, fetched where it must be; None where the model has no such file.

    Args:
        place: what `locate_model` gave: a folder, or a name on the hub.
    Raises:
        BadModel: the hub cannot be reached, or does not know the model.
    """
    if isinstance(place, Path):
        return place / name if (place / name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    cached = try_to_load_from_cache(place, name)
    if isinstance(cached, str):
        return Path(cached)
    if not hub_answers():
        raise BadModel(_unreachable(place))
    try:
        return Path(hf_hub_download(place, name, etag_timeout=_PATIENCE))
    except LocalEntryNotFoundError:
        raise BadModel(_unreachable(place)) from None
    except EntryNotFoundError:
        return None
    except GatedRepoError:
        raise BadModel(f"--model {place} is open only to those whom its owner let in. Ask there, then type: hf auth login") from None
    except RepositoryNotFoundError:
        raise BadModel(
            f"--model {place}: there is no such folder here, and no such model on the Hugging Face hub. "
            f"Check the name, name a local folder, or type --model {MINILM}."
        ) from None
    except OSError as error:
        raise BadModel(f"--model {place}: {name} could not be fetched from the Hugging Face hub ({_first_line(error)}).") from None


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached; told in seconds, where its own client tries for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # whichever library carries the session: no answer is no answer
        return False
    return True


def _unreachable(model: str) -> str:
    return (
        f"--model {model} is neither a folder nor in the local cache, and the Hugging Face hub cannot be reached. "
        f"Type --model {MINILM}, which needs no network, or name a local folder."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
