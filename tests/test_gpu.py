"""On a GPU: the numbers are the CPU's, equal states give exactly 0, every method and task goes through.

Skipped where there is no CUDA GPU. `TOV_TEST_DEVICE=cpu` runs the same tests on the CPU, as the dry run of benchmarks/gpu.sh
does, so that a fault of theirs is found without a GPU; `TOV_TEST_TINY=1` leaves the real models out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tov
from adapted import adapted_model, gap, in_batches, make_encoded, one_by_one
from conftest import skip_without
from test_classifiers import TYPES, sentence, text
from test_oracle_model import conversation, log_p_of, tokens_of
from tiny import make_rows, tiny_encoder_folder, tiny_model_folder, write_jsonl
from tov.cli.main import main
from tov.errors import FAILED
from tov.methods.tov.scan import layout, token_losses
from tov.model.kernels.attention import Rows, end_to_end
from tov.model.kernels.joined import scanning
from tov.model.kernels.packed import pack
from tov.model.load import resolve
from tov.text.batches import fill

DEVICE = os.environ.get("TOV_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
DTYPES = ["fp32", "bf16"] if ON_GPU else ["fp32"]
"""A CPU without bf16 takes minutes for it."""
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON_GPU and not torch.cuda.is_available(), reason="no CUDA GPU here (TOV_TEST_DEVICE=cpu: on it)"
    ),
]
MOST = 1e-4
"""Nats a token between two devices in fp32, or to the slow twin. TF32 products would be off by about ten times as much."""
MOST_NOISE = {"fp32": 1e-4, "bf16": 0.15}
"""Nats a token (root mean square) that rounding may make; a fault of the adapter's or the head's precision is more."""
MOST_LEAK = 0.03
"""Nats a token (root mean square) between layouts of tiny models in bf16; rows that see each other are off by 0.1 and more."""
MEASURES = ("score_identity", "score_abs", "score_positive", "loss_base", "loss_target")
MODELS = ["tiny", "tiny encoder", "smollm2", "minilm"]
EVERY = ["uncertainty", "less", "less/dim=64", "tracin", "dsir", "bm25", "tsds", "rds", "target-path"]
METHODS = EVERY[:: 1 if ON_GPU else 3]
"""On a CPU, where they say nothing, three will do."""
COLUMNS = {"uncertainty": "uncertainty", "less": "score_less", "target-path": "score_target_path"}
"""Of the score table, where it is not named after the method."""

Record = Callable[[str, object], None]


def words(count: int, *, target: bool = False) -> list[dict[str, Any]]:
    return [conversation(number, target=target) for number in range(count)]


def tagged(count: int, *, target: bool = False) -> list[dict[str, Any]]:
    draw = random.Random(1 + target)
    return [sentence(draw, TYPES[number % 2]) for number in range(count)]


def labelled(count: int, *, target: bool = False) -> list[dict[str, Any]]:
    draw = random.Random(1 + target)
    return [text(draw, TYPES[number % 2]) for number in range(count)]


class Case:
    """A model, a pool and a target, with a path fitted on the CPU in fp32."""

    def __init__(self, model: str, make: Callable[..., list[dict[str, Any]]], folder: Path, pool: int = 24) -> None:
        self.model, self.folder = model, folder
        self.pool = str(write_jsonl(folder / "pool.jsonl", make(pool)))
        self.target = str(write_jsonl(folder / "target.jsonl", make(6, target=True)))
        self.fitted = folder / "fitted"
        self.fit(self.fitted)

    def fit(self, out: Path, **settings: Any) -> tov.Result:
        given = {
            "base_size": 8, "epochs": 1, "max_length": 80, "dtype": "fp32", "device": "cpu", "decontaminate": False,
            "quiet": True, **settings,
        }  # fmt: skip
        return tov.fit(model=self.model, pool=self.pool, target=self.target, out=out, **given)

    def fitted_here(self, dtype: str) -> Path:
        """The path fitted on the device, once a dtype."""
        out = self.folder / f"fitted-here-{dtype}"
        if not out.exists():
            self.fit(out, dtype=dtype, device=DEVICE)
        return out

    def scored(self, fitted: Path, out: Path, device: str = DEVICE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Each measure of every row, and the manifest."""
        result = tov.score(fitted, self.pool, out=out, device=device, quiet=True)
        table = result.scores
        found = {name: table[name].to_numpy().astype(np.float64) for name in MEASURES}
        return found, json.loads((result.folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Case]:
    """By name, each made once."""
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
            if not name.startswith("tiny") and os.environ.get("TOV_TEST_TINY"):
                pytest.skip("TOV_TEST_TINY leaves the real models out")
            if name == "tiny":
                made[name] = Case(str(tiny_model_folder(folder)), words, folder)
            elif name == "tiny encoder":
                made[name] = Case(str(tiny_encoder_folder(folder)), tagged, folder)
            else:
                made[name] = Case(request.getfixturevalue(name), tagged if name == "minilm" else words, folder, 12)
        return made[name]

    return case


def largest_gap(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in MEASURES)


@pytest.mark.parametrize("name", MODELS)
def test_scores_in_fp32_are_the_cpus(
    name: str, cases: Callable[[str], Case], tmp_path: Path, record_property: Record
) -> None:
    case = cases(name)
    here, manifest = case.scored(case.fitted, tmp_path / "here")
    there, _ = case.scored(case.fitted, tmp_path / "cpu", "cpu")
    assert manifest["model"]["device"].startswith(DEVICE), f"scored on {manifest['model']['device']}"
    assert np.abs(there["score_identity"]).max() > 10 * MOST, "the scores are too small to be compared"
    found = largest_gap(here, there)
    record_property("largest gap, nat a token", found)
    assert found < MOST, f"{found:.2g} nat a token from the CPU's: products in less than fp32, or a mask that differs"


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_log_losses_equal_those_computed_one_token_at_a_time(
    name: str, cases: Callable[[str], Case], tmp_path: Path, record_property: Record
) -> None:
    """Against transformers and peft alone, on the CPU, without padding, by a float64 softmax."""
    case = cases(name)
    here, _ = case.scored(case.fitted, tmp_path / "here")
    tokenizer = AutoTokenizer.from_pretrained(resolve(case.model))
    rows = [tokens_of(tokenizer, json.loads(line)) for line in Path(case.pool).read_text().splitlines()]
    assert max(len(ids) for ids, _ in rows) <= 80, "the rows of this test must fit --max-length"
    states = log_p_of(case.fitted / "path" / "epoch-1", resolve(case.model), rows, (4.0,))
    found = 0.0
    for measure, which in (("loss_base", 0), ("loss_target", 1)):
        slow = np.array([-sum(row) / len(row) for row in states[which]])
        found = max(found, float(np.abs(here[measure] - slow).max()))
    record_property("largest gap, nat a token", found)
    assert found < MOST, f"{found:.2g} nat a token from the slow twin"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_the_noise_floor_is_that_of_the_dtype(
    name: str, dtype: str, cases: Callable[[str], Case], tmp_path: Path, record_property: Record
) -> None:
    case = cases(name)
    here, manifest = case.scored(case.fitted_here(dtype), tmp_path / "run")
    floor = manifest["scoring"]["noise_floor"]
    record_property("noise floor, nat a token", floor)
    record_property("largest score", float(np.abs(here["score_identity"]).max()))
    assert floor["token_rms"] < MOST_NOISE[dtype], f"rounding in {dtype} makes {floor['token_rms']:.2g} nat a token"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_equal_states_score_exactly_0(name: str, dtype: str, cases: Callable[[str], Case], tmp_path: Path) -> None:
    """The stored target state is replaced by the base state: both passes must round alike, bit for bit."""
    case = cases(name)
    fitted = Path(shutil.copytree(case.fitted_here(dtype), tmp_path / "fitted"))
    epoch = fitted / "path" / "epoch-1"
    shutil.copy(epoch / "base" / "adapter_model.safetensors", epoch / "target" / "adapter_model.safetensors")
    manifest = json.loads((fitted / "path" / "manifest.json").read_text())
    del manifest["adapters"]  # the digests by which a changed adapter is refused
    (fitted / "path" / "manifest.json").write_text(json.dumps(manifest))
    here, _ = case.scored(fitted, tmp_path / "run")
    for measure in ("score_identity", "score_abs", "score_positive"):
        assert not here[measure].any(), f"{measure} of equal states is {np.abs(here[measure]).max():.2g}, not 0"
    assert here["loss_base"].min() > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_path_is_fitted_as_on_the_cpu(name: str, cases: Callable[[str], Case], record_property: Record) -> None:
    """Steps in fp32; a step of Adam enlarges the rounding of small gradients, so only log-losses are compared."""
    case = cases(name)
    logs = {}
    for device, fitted in ((DEVICE, case.fitted_here("fp32")), ("cpu", case.fitted)):
        manifest = json.loads((fitted / "path" / "manifest.json").read_text())
        logs[device] = [entry["log_loss"] for entry in manifest["log"]]
    found = float(np.abs(np.subtract(logs[DEVICE], logs["cpu"])).max())
    record_property("largest gap of an epoch's log-loss, nat a token", found)
    assert found < 1e-3, f"an epoch's log-loss is {found:.2g} nat off: {logs}"


@pytest.mark.parametrize("task", ["instruction", "ner"])
def test_rows_end_to_end_score_as_padded_ones(
    task: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """In bf16, where a kernel walks the rows, and in fp32 on the CPU, where nothing but rounding differs."""
    rows, found = make_encoded(task, lengths=(3, 9, 1, 30, 7, 5, 17)), {}
    heads = (
        {"num_attention_heads": 2, "num_key_value_heads": 1} if task == "instruction" else {}
    )  # of 8 numbers, or more
    for name, device, dtype, attention in (
        ("end to end", DEVICE, torch.bfloat16, end_to_end),
        ("padded", DEVICE, torch.bfloat16, lambda _: nullcontext()),
        ("in fp32", "cpu", torch.float32, lambda _: nullcontext()),
    ):
        monkeypatch.setattr("tov.model.kernels.joined.for_scans", attention)
        adapted = adapted_model(task, dtype=dtype, **heads).to(device)
        model = adapted.get_base_model()
        with scanning(adapted):
            batches = layout(model, rows, 40)
            assert any(batch.end_to_end for batch in batches) == (name == "end to end"), f"{name}: {batches}"
            found[name] = token_losses(model, batches)  # rows in the same order, longest first
    for other, most in (("padded", MOST_LEAK), ("in fp32", 2 * MOST_LEAK)):
        gap = distance(found["end to end"], found[other])
        record_property(f"from those {other}, nat a token", gap)
        assert gap < most, f"{gap:.2g} nat a token from the rows {other}"


@pytest.mark.parametrize("task", ["instruction", "ner"])
def test_the_bound_would_tell_rows_that_see_each_other(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = make_encoded(task, lengths=(3, 9, 1, 30, 7, 5, 17)), []
    monkeypatch.setattr("tov.model.kernels.joined.for_scans", end_to_end)
    adapted = adapted_model(task, dtype=torch.float32)
    for lengths in (lambda told: told, lambda told: [sum(told)]):
        with scanning(adapted):
            model = adapted.get_base_model()
            batches = [pack(rows, group) for group in fill(rows.lengths, rows.scored_counts > 0, 40)]
            monkeypatch.setattr("tov.model.kernels.packed.Rows", lambda told, ends, of=lengths: Rows(of(told), ends))
            found.append(token_losses(model, batches))
    assert distance(*found) > 3 * MOST_LEAK


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


@pytest.mark.parametrize("task", ["instruction", "ner", "classification"])
def test_row_gradients_equal_the_twins(task: str, record_property: Record) -> None:
    """By plain autograd through peft's own model, one row alone, on the CPU."""
    rows = make_encoded(task)
    wanted = one_by_one(adapted_model(task), rows)
    found = gap(in_batches(adapted_model(task, dtype=torch.float32).to(DEVICE), rows), wanted)
    record_property("largest gap over the largest gradient", found)
    assert found < 1e-3


@pytest.mark.parametrize(("model", "make"), [("tiny", words), ("tiny encoder", tagged), ("tiny encoder", labelled)])
def test_a_whole_selection(
    model: str, make: Callable[..., Any], cases: Callable[[str], Case], tmp_path: Path, record_property: Record
) -> None:
    """In the dtype that the device is given by default."""
    pool, target = make(24), make(6, target=True)
    given = {
        "base_size": 8, "epochs": 2, "max_length": 80, "decontaminate": False, "quiet": True, "device": DEVICE, "n": 8,
        "dtype": "auto" if ON_GPU else "fp32", "page": False,
    }  # fmt: skip
    runs = [
        tov.select(model=cases(model).model, pool=pool, target=target, out=tmp_path / which, **given) for which in "ab"
    ]
    assert len(runs[0].dataset) == 8
    assert np.isfinite(runs[0].scores["score_positive"].to_numpy()).all()
    one, two = (run.scores["score_positive"].to_numpy().astype(np.float64) for run in runs)
    record_property("largest gap between two runs", float(np.abs(one - two).max()))
    if ON_GPU:  # its attention adds up gradients in no fixed order
        assert np.corrcoef(one, two)[0, 1] > 0.99, "the same command gives other scores the second time"
    else:
        assert (one == two).all(), "the same command gives other scores the second time"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_as_on_the_cpu(
    method: str, cases: Callable[[str], Case], tmp_path: Path, record_property: Record
) -> None:
    """In fp32. What is fitted first differs by rounding, which Adam enlarges, so it is the scores' correlation that counts."""
    case = cases("tiny")
    options = {"less": "/lora_r=4/batch_size=4", "tracin": "/lora_r=4/batch_size=4", "target-path": "/epochs=2"}
    variant = method + options.get(method.partition("/")[0], "")
    given: dict[str, Any] = {
        "max_length": 80,
        "dtype": "fp32",
        "decontaminate": False,
        "quiet": True,
        "n": 8,
        "page": False,
    }
    given |= {"base_size": 8, "epochs": 1} if method == "uncertainty" else {}
    found = {}
    for device in (DEVICE, "cpu"):
        run = tov.select(
            model=case.model, pool=case.pool, target=case.target, method=variant, device=device,
            out=tmp_path / device.replace(":", "-"), **given,
        )  # fmt: skip
        table = run.scores
        column = COLUMNS.get(method.partition("/")[0], f"score_{method}")
        scores = table[column].to_numpy().astype(np.float64)
        found[device] = np.exp(scores) if method == "tsds" else scores  # log-probabilities, of which many are -inf
    same = float(np.corrcoef(found[DEVICE], found["cpu"])[0, 1])
    record_property("correlation with the CPU's scores", same)
    assert same > 0.99, f"{method}: correlation {same:.3f} with the scores of the CPU"


@pytest.mark.parametrize("given", [{"load_in_4bit": True}, {"load_in_8bit": True}, {"device_map": "auto"}])
@pytest.mark.parametrize("method", ["tov", "less"])
def test_a_large_model_chooses_much_as_a_dense_one(
    method: str, given: dict[str, Any], tmp_path: Path, record_property: Record
) -> None:
    """Spread over the GPUs that are here it is the same model; in 4 and 8 bits it is near it."""
    if not ON_GPU:
        pytest.skip("4 and 8 bits, and spreading, are for CUDA GPUs")
    skip_without("accelerate", "bitsandbytes", install="pip install 'tov[quantised]'")
    model = str(tiny_model_folder(tmp_path, hidden_size=64, intermediate_size=128))
    runs = [
        tov.select(
            model=model, pool=words(24), target=words(6, target=True), n=8, max_length=80, dtype="fp32", quiet=True,
            method=method, out=tmp_path / f"run{number}", decontaminate=False, page=False, **more,
            **({"base_size": 8, "epochs": 1} if method == "tov" else {}),
        )
        for number, more in enumerate(({}, given))
    ]  # fmt: skip
    score = COLUMNS.get(method, "score_identity")
    # In 4 bits a random model's losses are near the dense one's, and their small differences are its own.
    column = "loss_base" if method == "tov" and "device_map" not in given else score
    dense, large = (run.scores[column].to_numpy().astype(np.float64) for run in runs)
    marks = [json.loads((run.folder / "manifest.json").read_text())["model"]["fingerprint"] for run in runs]
    assert marks[0] != marks[1], "runs of the two could be mixed"
    assert np.isfinite(runs[1].scores[score].to_numpy()).all()
    same = float(np.corrcoef(dense, large)[0, 1])
    record_property("correlation with the dense model", same)
    assert same > (0.99 if "device_map" in given else 0.3)


def test_too_little_memory_is_explained(
    cases: Callable[[str], Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not ON_GPU:
        pytest.skip("no limit can be set to the memory of a CPU")
    case = cases("tiny")
    pool = write_jsonl(tmp_path / "pool.jsonl", make_rows(400, seed=5, shortest=900, longest=1000))
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + (32 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        flags = [
            "--max-length",
            "1024",
            "--batch-tokens",
            "500000",
            "--n",
            "8",
            "--base-size",
            "8",
            "--epochs",
            "1",
            "--quiet",
            "--no-page",
        ]
        with pytest.raises(SystemExit) as stopped:
            main([
                "select", "--model", case.model, "--pool", str(pool), "--target", case.target, "--device", DEVICE, *flags,
                "--out", str(tmp_path / "run"),
            ])  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    said = capsys.readouterr().err
    assert stopped.value.code == FAILED, said
    assert "out of memory" in said, said
    assert "--batch-tokens" in said, said
