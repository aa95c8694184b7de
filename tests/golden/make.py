"""Makes the golden files, or checks that the code still gives them.

    python tests/golden/make.py             # make them anew; refused in a tree with changes
    python tests/golden/make.py --check     # run again: every score and every chosen row must be equal to the last bit
    python tests/golden/make.py --folders   # keep run folders as this version writes them; never overwrites those of a version

Scores are equal to the last bit only on the kind of machine that made them (`provenance.json` says which), in one thread;
`tests/test_golden.py` makes the same runs and compares with tolerances that hold on any processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def check() -> int:
    """Runs everything again, and says what is not as it was."""
    from golden.records import differences, load, provenance
    from golden.runs import make_all

    with tempfile.TemporaryDirectory() as folder:
        found = make_all(Path(folder))
    lines = [line for name, record in found.items() for line in differences(load(name), record, name)]
    print("\n".join(lines) or f"{len(found)} golden records are equal to the last bit")
    if lines:
        made = json.loads((HERE / "provenance.json").read_text())
        print("\n".join(["what is other than when they were made:", *differences(made, provenance())]))
    return bool(lines)


def refresh() -> int:
    """Writes the golden files anew."""
    from golden.records import provenance, save
    from golden.runs import make_all

    with tempfile.TemporaryDirectory() as folder:
        save(make_all(Path(folder)))
    (HERE / "provenance.json").write_text(json.dumps(provenance(), indent=1) + "\n", encoding="utf-8")
    return 0


def keep_folders() -> int:
    """Keeps run folders as this version writes them, and beside them what today's commands make of those."""
    import tov
    from golden.records import provenance
    from golden.runs import run_folders, use_folders

    kept = HERE / f"run-{tov.__version__}"
    if kept.exists():
        print(f"{kept} is there: what an earlier version wrote is never made anew", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        run_folders(made)
        expected = use_folders(made, Path(temporary) / "copy")
        for name, facts in {"expected": expected, "provenance": provenance()}.items():
            (made / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        shutil.copytree(made, kept)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--folders", action="store_true", help="keep run folders of this version")
    asked = parser.parse_args()
    if asked.check:
        return check()
    from golden.records import changes

    changed = changes()
    if changed:
        print(f"the tree has changes, so no commit would say what made the files:\n{changed}", file=sys.stderr)
        return 2
    return keep_folders() if asked.folders else refresh()


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    sys.path[:1] = [str(HERE.parent)]
    sys.exit(main())
