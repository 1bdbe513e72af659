"""Opening a zarr group or array, in a folder or behind a URL."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import ImageError, VoidzooError


def is_url(path: str) -> bool:
    """True for what has a scheme, e.g. `https://host/image.ome.zarr`."""
    return "://" in path


def node_name(path: str) -> str:
    """`store.ome.zarr/labels/nuclei` -> the part from the store on."""
    parts = path.rstrip("/").replace("\\", "/").split("/")
    roots = [i for i, part in enumerate(parts) if part.endswith(".zarr")]
    return "/".join(parts[roots[-1] :]) if roots else parts[-1]


def open_node(path: str, what: str) -> Any:
    """A zarr group or array (`what`: "node" for either, "array"), read only; `path` is a folder or a URL.

    Raises ImageError for what is neither or cannot be reached, DependencyError for a URL that needs a library.
    """
    import zarr

    store: Any = path
    if is_url(path):
        from .zarr_remote import remote_store

        store = remote_store(path)
    try:
        if what == "array":
            return zarr.open_array(store, mode="r")  # from any thread: no warnings.catch_warnings, it is not safe there
        with warnings.catch_warnings():
            # consolidated metadata is not in the v3 specification yet; reading it is fine
            warnings.filterwarnings("ignore", category=UserWarning)
            return zarr.open(store, mode="r")
    except VoidzooError:
        raise
    except Exception as error:
        raise ImageError(
            f"{node_name(path)} is not a zarr store that can be read.",
            f"{path}: {type(error).__name__}: {error}",
            "check the address: of images behind a URL only OME-Zarr is read"
            if is_url(path)
            else "check the path, or copy the folder again",
        ) from error
