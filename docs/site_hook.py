"""A hook of mkdocs: the two pages that lie beside the folder of the documents become pages of the site, which asks no network,
and comparisons among the results have their live pages in it.

Links are written as GitHub follows them. Those that leave the folder are led back into the site. The theme would fetch the
script that lets its search work from files; the site has one of its own. Knows where pages lie; must not know what they say.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = ("SECURITY.md", "CHANGELOG.md")
"""Pages beside the folder of the documents."""
RESULTS, PAGES = ROOT / "docs" / "results", "pages"
"""Results of comparisons, and where their pages are put beside the page of all of them."""
FETCHED, OWN = "https://unpkg.com/iframe-worker/shim", "assets/search-from-files.js"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from outside."""
    from mkdocs.structure.files import File

    for name in OUTSIDE:
        files.append(File.generated(config, name, content=inward((ROOT / name).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to the pages from outside go one folder less far up; the results have links to the pages of their comparisons."""
    if page.file.src_uri == "results/README.md":
        links = [f'<li><a href="{PAGES}/{name}.html">{name.replace("--", ": ")}</a></li>' for name in compared()]
        markdown += f"\n\n## Pages of these comparisons\n\n<ul>{''.join(links)}</ul>\n"
    return re.sub(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(OUTSIDE)}))", r"](\1", markdown)


def compared() -> dict[str, Path]:
    """Name of a page -> the folder of its results: each grid, then its experiments."""
    grids = sorted(file.parent for file in RESULTS.glob("*/results.json"))
    return {
        name: folder
        for grid in grids
        for name, folder in (
            (grid.name, grid),
            *((f"{grid.name}--{file.parent.name}", file.parent) for file in sorted(grid.glob("*/results.json"))),
        )
    }


def on_post_build(config: Any, **_: Any) -> None:
    """Writes the pages of the comparisons, as `tov report` does."""
    from tov.verbs.report import report

    for name, folder in compared().items():
        report(folder, out=Path(config["site_dir"]) / "results" / PAGES / f"{name}.html")


def inward(markdown: str) -> str:
    """A page from outside, whose links to documents are now links to neighbours; source files are named, not linked."""
    markdown = re.sub(r"\[([^]]*)\]\(src/[^)]*\)", r"\1", markdown)
    return markdown.replace("](docs/", "](")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """The search of a page takes the site's own script."""
    return output.replace(FETCHED, "../" * page.url.count("/") + OWN)


def on_post_template(output_content: str, **_: Any) -> str:
    """Likewise of the page for addresses that do not exist."""
    return output_content.replace(FETCHED, OWN)
