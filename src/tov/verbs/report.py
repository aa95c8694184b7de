"""`tov report`: one HTML page of a run, of a comparison or a grid, or of two selections side by side."""

from __future__ import annotations

import os
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tov.comparison.records import read_results
from tov.config.page import ReportConfig
from tov.config.settings import build
from tov.errors import ConfigError, RunError
from tov.files import checksum, write_text
from tov.objects.mirror import local, named
from tov.objects.stores import at_home, cache_home, is_url
from tov.progress import file_size
from tov.reports.html.comparison import comparison_page, grid_page
from tov.reports.html.page import Page, html
from tov.reports.html.pair import pair_page
from tov.reports.html.selection import gate_page, selection_page
from tov.reports.summary import to_choose
from tov.runs.environment import versions
from tov.runs.folder import Run, any_run
from tov.runs.made import alone_in
from tov.runs.manifest import Manifest
from tov.scores.store import read_hashes
from tov.sinks import argument, line
from tov.tasks import TASKS
from tov.verbs import shown as shown_rows
from tov.verbs import training_file

FILE, BESIDE = "report.html", "beside-"
RESULTS = "results.json"
MARK = b'<meta name="generator" content="tov '
"""Near the beginning of every page."""
GAINED, LOST = "only in the second", "only in the first"


@dataclass(frozen=True)
class Reported:
    """A page that has been written.

    Attributes:
        file: the page.
        verdict: its first sentence.
    """

    file: Path
    verdict: str

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return {"page": str(self.file), "bytes": self.file.stat().st_size, "verdict": self.verdict}

    def __str__(self) -> str:
        """What the command prints."""
        size = file_size(self.file.stat().st_size)
        return f"{line(self.verdict)}\npage: {line(self.file)} ({size}; opens in any browser, needs no network)"

    def __fspath__(self) -> str:
        """It may be given wherever a file may."""
        return str(self.file)


def report(
    run: str | os.PathLike[str], other: str | os.PathLike[str] | None = None, *, out: str | Path | None = None,
    open: bool = False,
) -> Reported:  # fmt: skip
    """Writes the page of a run, or of two selections side by side.

    Args:
        run: folder of a selection, a comparison, a grid or the pilots of auto (or its result).
        other: a second selection.
        out: file of the page; default: report.html in the run folder.
        open: whether to open it in the browser.

    Raises:
        RunError: there is no such run, it is not finished, or it has no page.
    """
    runs = tuple(os.fspath(one) for one in (run, other) if one is not None)
    return run_report(
        build(ReportConfig, {"runs": runs, "out": str(out) if out else None, "open": open, "quiet": True})
    )


def run_report(config: ReportConfig) -> Reported:
    """`report` from a record of settings."""
    if len(config.runs) > 2:
        raise ConfigError(
            f"tov report got {len(config.runs)} runs.", allowed="one run, or two selections to be shown side by side",
            fix="Name one or two. A grid is named by its folder.",
        )  # fmt: skip
    if is_url(config.out):
        raise ConfigError(
            f"--out {config.out} is a URL.",
            allowed="a file here",
            fix="Leave --out out: the page is then put into the run.",
        )
    folders = [local(one) if is_url(one) else at_home(one) for one in config.runs]
    page = _pair(*map(_selection, folders)) if len(folders) == 2 else page_of(folders[0])
    file = (
        at_home(config.out)
        if config.out
        else folders[0] / (FILE if len(folders) == 1 else f"{BESIDE}{folders[1].resolve().name}.html")
    )
    _check_place(file)
    _write(page, file, folders[0])
    if config.open:
        webbrowser.open(file.absolute().as_uri())
    return Reported(file, page.verdict)


def _check_place(file: Path) -> None:
    """Raises ConfigError where a page would take the place of something else."""
    if file.is_dir():
        raise ConfigError(f"--out {file} is a folder.", fix=f"Name a file, e.g. --out {file / FILE}.")
    if file.exists():
        with open(file, "rb") as opened:
            ours = MARK in opened.read(2000)
        if not ours:
            raise ConfigError(
                f"--out {file} is there, and is no page of tov.", fix="Name another file, or move that one away first."
            )


def page_of(folder: Path) -> Page:
    """The page of whatever a folder holds.

    Raises:
        RunError: nothing that has a page.
    """
    if not (folder / "manifest.json").exists() and (folder / RESULTS).exists():
        results = {path.parent.name: read_results(path) for path in sorted(folder.glob(f"*/{RESULTS}"))}
        if results:
            return _of_results(lambda: grid_page(results, str(folder)), folder)
    run = any_run(folder, with_page=True)
    if (folder / RESULTS).exists():
        return _of_results(
            lambda: comparison_page(read_results(folder / RESULTS), run.manifest, str(folder)), folder / RESULTS
        )
    if run.manifest.command == "gate" and run.finished:
        record = (run.manifest.comparison or {})["gate"]
        return _of_results(lambda: gate_page(record, str(folder)), folder / "manifest.json")
    return _page(_selection(folder))


def _of_results(page: Callable[[], Page], place: Path) -> Page:
    """Results that are read from a file may be cut, or of another program."""
    try:
        return page()
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(
            f"The results of {place} lack something that their page shows ({type(error).__name__}: {error}).",
            fix="Put the file back from a copy, or give the command of the comparison again with --report-only.",
        ) from None


def _selection(folder: Path) -> Run:
    run = any_run(folder, with_page=True)
    command = run.manifest.command
    if run.finished and "choice" in run.manifest.summary:
        return run
    if not run.finished:
        raise RunError(f"{folder} is not finished.", fix="Give its command again: it goes on where it was.")
    if command == "compare":
        if not (folder / RESULTS).exists():
            raise RunError(
                f"{folder} is a comparison without its {RESULTS}.",
                fix=f"Make it anew: tov compare {argument(folder / 'config.yaml')} --report-only",
            )
        raise RunError(
            f"{folder} is a comparison, and only two selections can stand side by side.",
            fix="Name two selections; or the comparison alone.",
        )
    n = to_choose(run.manifest.summary["scores"]["usable"]) if command == "score" else 0
    raise RunError(
        f"{folder} is a run of tov {command}, which has no page.",
        allowed="a selection, a comparison or a grid",
        fix=f"Choose rows from it first: tov select --from {argument(folder)} --n {n} --out OUT"
        if n
        else "Name another run.",
    )


def _page(run: Run) -> Page:
    return selection_page(run.manifest, shown_rows.read(run), named(run.place))


def write_page(run: Run) -> None:
    """The page of a selection that is about to be finished."""
    shown = shown_rows.read_file(run.folder / shown_rows.FILE)
    write_text(run.folder / FILE, _html(selection_page(run.manifest, shown, named(run.place))))


def write_results(folder: Path, results: dict[str, Any], manifest: Manifest, place: Path) -> None:
    """The page of a comparison."""
    write_text(folder / FILE, _html(comparison_page(results, manifest, str(place))))


def write_grid(folder: Path, results: dict[str, Any]) -> None:
    """The page of a grid."""
    write_text(folder / FILE, _html(grid_page(results, str(folder))))


def _html(page: Page) -> str:
    return html(page, version=versions()["tov"], cache=cache_home())


def _write(page: Page, file: Path, folder: Path) -> None:
    """Writes the page; one of a name of ours in the run folder is listed there as the run's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ours = file.name == FILE or file.name.startswith(BESIDE)
    if not (ours and file.parent.resolve() == folder.resolve() and (folder / "manifest.json").exists()):
        write_text(file, _html(page))
        return
    with alone_in(folder):
        write_text(file, _html(page))
        run = any_run(folder)
        if run.finished:
            run.note(files={**run.manifest.files, file.name: checksum(file)})


def write_missing(run: Run) -> Run:
    """A finished selection that may have been made without a page, with its page."""
    if (run.folder / FILE).exists():
        return run
    _write(_page(run), run.folder / FILE, run.folder)
    return any_run(run.folder)


def _pair(first: Run, second: Run) -> Page:
    """Of two selections; rows are the same where their content is."""
    runs, one, two = (first, second), first.place, second.place
    ends = [place.name or place.resolve().name for place in (one, two)]
    names = (ends[0], ends[1]) if ends[0] != ends[1] else (str(one), str(two))
    chosen, hashes = [], []
    for run in runs:
        rows = training_file.read_selected(run.check_file(training_file.FILE).parent)
        row_ids = np.array(rows["tov_row_id"], np.int64)
        hashes.append(dict(zip(row_ids.tolist(), read_hashes(run.scores, row_ids, run.stamp), strict=True)))
        chosen.append(_of_content(hashes[-1].values(), rows["tov_source"]))
    return pair_page(names, (chosen[0], chosen[1]), _gained_and_lost(runs, hashes))


def _of_content(hashes: Iterable[str], sources: Iterable[str]) -> dict[tuple[str, int], str]:
    """Content, and which of the rows of one content it is -> source: repeats are rows too."""
    seen = Counter[str]()
    found = dict[tuple[str, int], str]()
    for one, source in zip(hashes, sources, strict=True):
        found[one, seen[one]] = source
        seen[one] += 1
    return found


def _gained_and_lost(runs: tuple[Run, Run], hashes: list[dict[int, str]]) -> dict[str, Any] | None:
    """Of what both runs have stored to be shown, the chosen rows that the other has not."""
    both = [shown_rows.read(run) for run in runs]
    if both[0] is None or both[1] is None:
        return None
    task = TASKS[runs[0].manifest.model.task] if runs[0].manifest.model else None
    return {
        **shown_rows.apart(both[0], both[1], hashes, (LOST, GAINED), same=_one_pool(runs)),
        "unit": task.length if task else "tokens", "inline": bool(task and task.new_head),
        "run": argument(named(runs[0].place)),
    }  # fmt: skip


def _one_pool(runs: tuple[Run, Run]) -> bool:
    """Whether two runs chose from the very same rows: from one score table, or from pools of one content."""
    if runs[0].stamp == runs[1].stamp:
        return True
    pools = [(run.manifest.identity.get("pool") or {}).get("fingerprint") for run in runs]
    return pools[0] is not None and pools[0] == pools[1]
