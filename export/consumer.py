"""bioimageio.core's own test of a package, as a process of its own: `python -P -m voidzoo.export.consumer`.

Packages bring code: architectures of state dicts, `custom` steps, TorchScript. core runs all of it; here it gets to run
what makes the networks of voidzoo, and nothing else without trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

NOT_RUN = "code of the package is not run"


def own_architecture() -> str:
    """The sha256 of the file that makes the networks of voidzoo. torch is not imported."""
    found = importlib.util.find_spec("voidzoo.trainers.networks.unet")
    assert found is not None
    assert found.origin is not None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def main(path: str, formats: list[str] | None, *, trust_code: bool) -> dict[str, Any]:
    """What core says of a package: version, status, errors, complete (0 to 1), offline (hosts).

    formats: of weights that are to run; None: all; an empty list: the description alone is looked at.
    """
    offline = _without_network()
    import bioimageio.core

    if not trust_code:
        _without_code(path, torchscript=formats is None or "torchscript" in formats)
    if formats:
        summaries = [bioimageio.core.test_model(path, weight_format=f) for f in formats]
    elif formats is None:
        summaries = [bioimageio.core.test_model(path)]
    else:
        summaries = [bioimageio.core.load_description(path).validation_summary]
    errors = [".".join(map(str, e.loc)) + ": " + e.msg for s in summaries for d in s.details for e in d.errors]
    states = [s.status for s in summaries]
    return {
        "version": bioimageio.core.__version__,
        "status": next((s for s in states if s not in ("passed", "valid-format")), states[0]),
        "errors": list(dict.fromkeys(errors)),
        "complete": max(s.metadata_completeness or 0.0 for s in summaries),
        "offline": sorted(set(offline)),
    }


def _without_network() -> list[str]:
    """A missing network is a timeout to core, which it takes for a warning; -> the hosts that were not reached."""
    import httpx

    offline: list[str] = []
    ask = httpx.HTTPTransport.handle_request

    def late(self: Any, request: Any) -> Any:
        try:
            return ask(self, request)
        except httpx.ConnectError as error:
            offline.append(str(request.url.host))
            raise httpx.ConnectTimeout(str(error), request=request) from error

    httpx.HTTPTransport.handle_request = late  # type: ignore[method-assign]
    return offline


def _without_code(path: str, *, torchscript: bool) -> None:
    """Whichever description core reads, and from wherever: no architecture but ours, no custom step, no TorchScript
    that reaches files. torch is imported only where there is TorchScript to run.
    """
    import bioimageio.core.digest_spec as digest

    make, ours = digest.import_callable, own_architecture()

    def refuse(node: Any, /, **settings: Any) -> Any:
        if type(node).__name__ == "ArchitectureFromFileDescr" and str(node.sha256) == ours:
            return make(node, **settings)  # which computes the sha256 of what it runs
        raise PermissionError(NOT_RUN)

    for name, module in list(sys.modules.items()):
        if name.startswith("bioimageio.core") and hasattr(module, "import_callable"):
            setattr(module, "import_callable", refuse)  # noqa: B010  (of a module that is not ours)
    if torchscript:
        with contextlib.suppress(ImportError):
            import torch

            from ..infer.networks.script_archive import checked_script

            load = torch.jit.load

            def checked(file: Any, *args: Any, **settings: Any) -> Any:
                data = file.read() if hasattr(file, "read") else Path(file).read_bytes()
                return load(io.BytesIO(checked_script(data, path)), *args, **settings)

            torch.jit.load = checked


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asked = json.loads(sys.argv[1])
    sys.stdout.write("\n" + json.dumps(main(asked["path"], asked["formats"], trust_code=asked["trust_code"])) + "\n")
