"""The JavaScript that a page carries: Vega-Lite by vl-convert, DataTables by itables; both read from installed packages.

The bundle of Vega-Lite takes seconds to make, so it is kept in the cache folder, by the version of what made it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

from tov.errors import RunError, StorageError
from tov.files import write_text

GLOBALS = "window.vegaEmbed=vegaEmbed;"


@functools.cache
def charts_script(cache: Path) -> str:
    """vega, vega-lite and vega-embed as one module, which sets `window.vegaEmbed`."""
    file = cache / "page" / f"vega-{version('vl-convert-python')}.js"
    if not file.exists():
        import vl_convert

        made = vl_convert.javascript_bundle(GLOBALS)
        try:
            write_text(file, made)
        except (OSError, StorageError):  # then it is made each time: a page is worth more than its cache
            return _inert(made)
    return _inert(file.read_text("utf-8"))


def _bundled(name: str) -> str:
    """A file of itables, which is not imported: it would import all that it makes tables of."""
    spec = importlib.util.find_spec("itables")
    place = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if place is None:
        raise RunError("The package itables is not installed.", fix="Install tov again: pip install --upgrade tov")
    return (Path(place) / "html" / name).read_text("utf-8")


@functools.cache
def table_script() -> str:
    """DataTables as one module, which sets `window.DataTable`."""
    text = _bundled("dt_bundle.js")
    exported = re.search(r"export\s*\{([^}]*)\}\s*;?", text)
    name = re.search(r"([\w$]+) as default", exported[1]) if exported else None
    if not exported or not name:
        raise RunError(
            "This version of itables has another bundle.", fix="Install itables 2: pip install 'itables>=2.5,<3'"
        )
    return _inert(text[: exported.start()] + f"window.DataTable={name[1]};" + text[exported.end() :])


@functools.cache
def table_style() -> str:
    """The style of DataTables."""
    return _bundled("dt_bundle.css").replace("</style", r"<\/style")


def _inert(script: str) -> str:
    """A script that cannot end the element it stands in."""
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")
