"""The settings of what a reader of a selection is shown."""

from __future__ import annotations

from tov.config.settings import Settings, consent, setting


class PageSettings(Settings):
    """What is stored for the page, and whether it is written."""

    page: bool = setting("output", "write report.html, the page of the run, when the run ends", True)


class ExplainSettings(PageSettings):
    """Of a run that has a model at hand."""

    explain_rows: int | None = setting(
        "output", "maximum rows whose single tokens are measured for the page, in one more pass; 0: none; auto: 100, but at "
        "most a twentieth of the pool (at least 16)", None, ge=0,
    )  # fmt: skip


class ReportConfig(Settings):
    """Settings of `tov report`."""

    runs: tuple[str, ...] = setting("output", "run folder, or two selections to be shown side by side", min_length=1)
    out: str | None = setting("output", "file of the page; default: report.html in the run folder", None, min_length=1)
    open: bool = setting("output", "open the page in the browser", False)
    json_output: bool = setting("output", "print the result as JSON", False)
    quiet: bool = setting("output", "print no result", False)


class InspectConfig(Settings):
    """Settings of `tov inspect`."""

    from_run: str = setting("output", "run folder", min_length=1)
    rows: tuple[int, ...] = setting("output", "row_ids: places in the pool, from 0", min_length=1)
    tokens: bool = setting(
        "output",
        "open the model and measure the rows' tokens and nearest target rows, where the run has not stored them",
        True,
    )
    device: str = setting("output", "device: auto, cpu, cuda, cuda:1 or mps", "auto")
    trust_remote_code: bool = consent()
    json_output: bool = setting("output", "print the result as JSON", False)
    quiet: bool = setting("output", "print no result", False)
