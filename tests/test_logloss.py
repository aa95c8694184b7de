"""Log p of scored tokens against plain float64 arithmetic, for every kind of head that tov says it knows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaForCausalLM,
    PhiConfig,
)

from oracle.logloss import token_logprobs as one_at_a_time
from tiny import VOCABULARY, tiny_llama
from tov.errors import ModelError
from tov.model import logloss
from tov.model.adapters import attach, parameters
from tov.model.load import pick_dtype
from tov.model.logloss import Head, check_head, gather_hidden, head_of, token_logprobs

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "gemma2, softcap": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0),
    "cohere, logit_scale": CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.25),
    "granite, logits_scaling": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=3.0),
    "phi, bias": PhiConfig(**SMALL, num_key_value_heads=4),
    "gpt2, Conv1D and tied": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
}  # fmt: skip
KINDS = ["llama", "llama, tied", "llama, adapted head", *CONFIGS]


def make(kind: str, dtype: torch.dtype):
    torch.manual_seed(0)
    if kind.startswith("llama"):
        model = tiny_llama(dtype=dtype, tie_word_embeddings="tied" in kind)
    else:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind])).to(dtype).eval()
    if "bias" in kind:
        nn.init.normal_(model.lm_head.bias)
    return with_adapted_head(model) if "adapted" in kind else model


def with_adapted_head(model):
    adapted = attach(model, rank=2, alpha=8.0, dropout=0.0, targets=("q_proj", "lm_head"), seed=0).eval()
    for parameter in parameters(adapted).values():
        nn.init.normal_(parameter, std=0.3)
    if model.dtype == torch.float64:
        adapted.double()
    return adapted.get_base_model()


def some_rows(*, rows: int = 3, length: int = 12):
    torch.manual_seed(1)
    scored = torch.rand(rows, length) < 0.6
    scored[:, 0] = False
    return torch.randint(3, VOCABULARY, (rows, length)), scored


@torch.no_grad()
def plain(model, ids, scored):
    """Log p from the model's own logits by a float64 softmax."""
    logp = model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    return logp.gather(2, ids[:, 1:, None])[..., 0][scored[:, 1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_models_own_logits_in_float64(kind):
    model, (ids, scored) = make(kind, torch.float64), some_rows()
    with torch.no_grad():
        ours = token_logprobs(head_of(model), *gather_hidden(model, ids, scored))
    gap = float((ours - plain(model, ids, scored)).abs().max())
    assert ours.std() > 0.1, "the model is too flat for this comparison to mean anything"
    assert gap < 1e-10, f"{kind}: {gap:.2g} nat off: labels shifted by one, or scale, softcap, bias or adapter ignored"


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_float64_twin_in_fp32(kind):
    model, (ids, scored) = make(kind, torch.float32), some_rows()
    with torch.no_grad():
        ours = token_logprobs(head_of(model), *gather_hidden(model, ids, scored)).double()
    gap = float((ours - plain(copy.deepcopy(model).double(), ids, scored)).abs().max())
    assert gap < 2e-5, f"{kind}: {gap:.2g} nat off in fp32: something is computed in less than fp32"


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_the_same_log_loss_as_scanning(kind):
    """With gradients another code runs; it must give the same numbers."""
    model, (ids, scored) = make(kind, torch.float64), some_rows()
    states, labels = gather_hidden(model, ids, scored)
    ours = token_logprobs(head_of(model), states, labels)
    assert ours.requires_grad, "the log-loss has no gradient, so nothing would be trained"
    gap = float((ours.detach() - plain(model, ids, scored)).abs().max())
    assert gap < 1e-10, f"{kind}: the log-loss under training is {gap:.2g} nat off"


def test_a_padded_batch_gives_what_each_row_gives_alone(tiny_model):
    """No attention mask is passed: right padding must not reach the scored tokens."""
    ids, scored = some_rows(rows=2, length=10)
    ids[1, 6:], scored[1, 6:] = 0, False
    with torch.no_grad():
        ours = token_logprobs(head_of(tiny_model), *gather_hidden(tiny_model, ids, scored)).tolist()
    alone = [
        value for row, mask in zip(ids.tolist(), scored.tolist(), strict=True)
        for value in one_at_a_time(tiny_model, row, mask)
    ]  # fmt: skip
    assert ours == pytest.approx(alone, abs=2e-5), "padding or a neighbour leaks into a row's log-loss"


@pytest.mark.parametrize("grad", [False, True], ids=["scan", "train"])
@pytest.mark.parametrize("below", [80.0, 90.0, 300.0])
def test_a_label_far_below_the_maximum_keeps_its_log_loss(below, grad):
    """exp overflows in fp32 above 88 nats."""
    head = Head(torch.eye(4), None, None, 1.0, None)
    hidden = torch.tensor([[below, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], requires_grad=grad)
    labels = torch.tensor([1, 1])
    with torch.set_grad_enabled(grad):
        logp = token_logprobs(head, hidden, labels)
    expected = hidden.detach().double().log_softmax(1)[torch.arange(2), labels]
    assert torch.allclose(logp.double(), expected, atol=1e-5, rtol=1e-6), (
        f"a label {below} nats below the maximum gets {logp.tolist()}, should be {expected.tolist()}"
    )


def test_a_far_label_still_gives_a_finite_gradient():
    head = Head(torch.eye(4), None, None, 1.0, None)
    hidden = torch.tensor([[300.0, 0.0, 0.0, 0.0]], requires_grad=True)
    token_logprobs(head, hidden, torch.tensor([1])).sum().backward()
    assert torch.allclose(hidden.grad, torch.tensor([[-1.0, 1.0, 0.0, 0.0]])), f"gradient {hidden.grad.tolist()}"


def random_head(*, bias: bool, low_rank: bool, scale: float, softcap: float | None, words: int = 23) -> Head:
    torch.manual_seed(3)
    down, up = torch.randn(2, 5).double(), torch.randn(words, 2).double()
    return Head(
        torch.randn(words, 5).double(), torch.randn(words).double() if bias else None,
        (lambda: (down, up, 0.7)) if low_rank else None, scale, softcap,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False, "low_rank": False, "scale": 1.0, "softcap": None},
        {"bias": True, "low_rank": False, "scale": 0.3, "softcap": None},
        {"bias": False, "low_rank": False, "scale": 1.0, "softcap": 2.0},
        {"bias": True, "low_rank": False, "scale": 0.5, "softcap": 3.0},
        {"bias": True, "low_rank": True, "scale": 0.5, "softcap": 3.0},
    ],
    ids=["plain", "bias+scale", "softcap", "bias+scale+softcap", "adapter+all"],
)
def test_gradient_is_the_derivative_of_the_log_loss(options, monkeypatch):
    monkeypatch.setattr(logloss, "CHUNK_TOKENS", 3)
    monkeypatch.setattr(logloss, "BLOCK_WORDS", 7)
    head, labels = random_head(**options), torch.tensor([0, 6, 7, 13, 22])
    hidden = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: token_logprobs(head, states, labels), (hidden,)), (
        "the hand-written gradient of the head is not that of its log-loss"
    )


def test_gradient_reaches_the_adapter_of_the_head():
    """Compared with plain autograd through the model's own logits."""
    model, (ids, scored) = make("llama, adapted head", torch.float64), some_rows()
    layer = model.get_output_embeddings()
    wanted = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    ours = torch.autograd.grad(token_logprobs(head_of(model), *gather_hidden(model, ids, scored)).sum(), wanted)
    logp = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    theirs = torch.autograd.grad(logp.gather(2, ids[:, 1:, None])[..., 0][scored[:, 1:]].sum(), wanted)
    for name, one, other in zip("AB", ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6), f"the gradient of the head's lora_{name} is wrong"


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (2, 299), (5, 300), (1000, 301), (4, 100)])
def test_chunk_and_block_edges_change_nothing(chunk, block, monkeypatch):
    """Sizes that divide, that leave a rest of one, and that exceed tokens and vocabulary."""
    model, (ids, scored) = make("llama", torch.float64), some_rows()
    monkeypatch.setattr(logloss, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(logloss, "BLOCK_WORDS", block)
    with torch.no_grad():
        ours = token_logprobs(head_of(model), *gather_hidden(model, ids, scored))
    gap = float((ours - plain(model, ids, scored)).abs().max())
    assert gap < 1e-10, f"chunks of {chunk} tokens and blocks of {block} words lose or repeat something: {gap:.2g} nat"


def test_no_scored_token_gives_an_empty_answer(tiny_model):
    ids, scored = some_rows()
    logp = token_logprobs(head_of(tiny_model), *gather_hidden(tiny_model, ids, torch.zeros_like(scored)))
    assert logp.shape == (0,), "a batch without scored tokens must give no log-probabilities"


class TriplesItsLogits(LlamaForCausalLM):
    """A head that tov does not know."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output


def test_an_unknown_head_is_refused(tiny_model):
    ids, _ = some_rows()
    odd = TriplesItsLogits(tiny_model.config).eval()
    odd.load_state_dict(tiny_model.state_dict())
    check_head(tiny_model, head_of(tiny_model), ids)
    with pytest.raises(ModelError, match="TriplesItsLogits"):
        check_head(odd, head_of(odd), ids)


def bf16_case(*, low_rank: bool = False):
    """A head, hidden states and labels in bf16, and their exact log p."""
    torch.manual_seed(5)
    weight, hidden = (torch.randn(rows, 64).bfloat16() for rows in (5000, 200))
    weight, labels = weight * 0.5, torch.randint(0, 5000, (200,))
    down, up = 0.1 * torch.randn(4, 64), torch.randn(5000, 4)
    logits = hidden.double() @ weight.double().T
    if low_rank:
        logits += 2.0 * (hidden.double() @ down.double().T) @ up.double().T
    head = Head(weight, None, (lambda: (down, up, 2.0)) if low_rank else None, 1.0, None)
    return head, hidden, labels, logits.log_softmax(1)[torch.arange(200), labels]


@pytest.mark.parametrize("low_rank", [False, True], ids=["frozen head", "adapted head"])
def test_bf16_hidden_states_meet_the_head_without_rounding(low_rank):
    head, hidden, labels, exact = bf16_case(low_rank=low_rank)
    with torch.no_grad():
        gap = float((token_logprobs(head, hidden, labels).double() - exact).abs().max())
    assert gap < 1e-4, f"{gap:.2g} nat off: the head's products or sums are rounded to bf16"


def test_bf16_training_sees_the_exact_log_loss_and_its_gradient():
    head, hidden, labels, exact = bf16_case()
    logp = token_logprobs(head, hidden.requires_grad_(), labels)
    assert float((logp.detach().double() - exact).abs().max()) < 1e-4, "the log-loss under training is rounded to bf16"
    logp.sum().backward()
    twin = hidden.detach().double().requires_grad_()
    (twin @ head.weight.double().T).log_softmax(1)[torch.arange(200), labels].sum().backward()
    gap = float((hidden.grad.double() - twin.grad).abs().max() / twin.grad.abs().max())
    assert gap < 2**-7, f"the gradient is {gap:.2g} off, more than its bf16 rounding"


def test_the_precision_of_other_products_is_left_alone():
    """The bf16 multiplier is a process-wide switch; it must not stay on."""
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if products is None:
        pytest.skip("this torch has no such switch")
    before = products.fp32_precision
    head, hidden, labels, _ = bf16_case()
    with torch.no_grad():
        token_logprobs(head, hidden, labels)
    assert products.fp32_precision == before, "fp32 products elsewhere in the process would now be rounded to bf16"


@pytest.mark.parametrize(("multiplies_bf16", "auto"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_where_it_multiplies_bf16(multiplies_bf16, auto, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: multiplies_bf16)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    found = {name: pick_dtype(name, torch.device("cpu")) for name in ("auto", "fp32", "bf16")}
    assert found == {"auto": auto, "fp32": "fp32", "bf16": "bf16"}


@pytest.mark.parametrize(
    ("most", "auto"), [("AVX2", "fp32"), ("avx512_core_bf16", "fp32"), ("AVX512_CORE_AMX", "bf16"), ("all", "bf16")]
)
def test_a_cpu_that_was_told_to_leave_its_multiplier_alone_computes_in_fp32(most, auto, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert pick_dtype("auto", torch.device("cpu")) == auto
