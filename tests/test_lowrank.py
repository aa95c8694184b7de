"""The thin forward and backward of an adapter against peft's own, and what must come back when it is over."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from tiny import VOCABULARY, make_rows, tiny_llama, tiny_tokenizer
from tov.methods.tov.scan import scan_rows
from tov.model.adapters import attach, parameters, read_state
from tov.model.kernels.attention import UNIT, aligned, wide
from tov.model.kernels.joined import _quick_norm, join, quick_norms, scanning
from tov.model.kernels.lowrank import _TrainedLinear, plain_layers, thin_factors, thin_linear, training
from tov.model.logloss import gather_hidden, head_of, token_logprobs
from tov.tasks.instruction import Conversation, encode


def adapted_llama(dtype: torch.dtype = torch.float32, *, dropout: float = 0.0, seed: int = 0):
    """A tiny Llama with an adapter that is not zero."""
    adapted = attach(
        tiny_llama(dtype=dtype), rank=4, alpha=8.0, dropout=dropout, targets=("all-linear",), seed=0
    ).eval()
    torch.manual_seed(seed)
    for parameter in parameters(adapted).values():
        nn.init.normal_(parameter, std=0.2)
    return adapted.double() if dtype == torch.float64 else adapted


def some_ids() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(3, VOCABULARY, (3, 11))


def log_p(model, ids):
    return model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)


# RMSNorm and the softmax of attention work in fp32 inside a float64 model, so a single layer is compared beside the whole.
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "float64"])
def test_thin_forward_equals_pefts_own_layer(dtype, most):
    adapted = adapted_llama(dtype)
    layers = plain_layers(adapted)
    assert len(layers) == 2 * 7, f"{len(layers)} layers run the thin forward, a Llama layer has 7 linear ones"
    for layer in layers:
        x = torch.randn(3, 5, layer.base_layer.in_features, dtype=dtype)
        with torch.no_grad():
            theirs = layer(x)
            with scanning(adapted):
                gap = float((layer(x) - theirs).abs().max() / theirs.abs().max())
        assert gap < most, f"{gap:.2g} from peft's forward: scaling alpha / r, or an orientation of A or B"


def test_thin_forward_equals_pefts_own_model():
    adapted, ids = adapted_llama(), some_ids()
    with torch.no_grad():
        theirs, bare = log_p(adapted, ids), log_p(tiny_llama(), ids)
    with scanning(adapted) as set_state:
        set_state(read_state(adapted))
        ours = log_p(adapted.get_base_model(), ids)
    assert (theirs - bare).abs().max() > 0.1, "the adapter does nothing here, so the comparison is empty"
    assert (ours - theirs).abs().max() < 1e-5 * bare.abs().max(), "a scan sees another model than peft's"


def test_set_state_is_what_the_next_forward_uses():
    """Factors are prepared once a state; stale ones would score the wrong checkpoint."""
    adapted, ids = adapted_llama(seed=1), some_ids()
    one, two = read_state(adapted), read_state(adapted_llama(seed=2))
    with scanning(adapted) as set_state:
        seen = []
        for state in (one, two, one):
            set_state(state)
            seen.append(log_p(adapted.get_base_model(), ids).clone())
    assert torch.equal(seen[0], seen[2]), "the same state gave two answers"
    assert (seen[0] - seen[1]).abs().max() > 0.1, "set_state did not reach the forward pass"


def factors_rounded(down, up, scaling):
    return down.bfloat16(), (up.T * scaling).bfloat16()


def product(factors) -> torch.Tensor:
    return factors[0].double().T @ factors[1].double()  # (in, out)


def bf16_state():
    torch.manual_seed(4)
    return torch.randn(8, 64), 0.1 * torch.randn(96, 8), 2.0


def test_bf16_factors_keep_twice_the_precision():
    down, up, scaling = bf16_state()
    exact = scaling * (up.double() @ down.double()).T
    ours, rounded = (
        float((product(factors) - exact).norm() / exact.norm())
        for factors in (thin_factors(down, up, scaling, torch.bfloat16), factors_rounded(down, up, scaling))
    )
    assert rounded > 1e-3, "rounding is not visible here, so the comparison is empty"
    assert ours < 2**-14, f"the split factors are {ours:.2g} off; two bf16 numbers hold 16 bits"


def test_bf16_factors_keep_a_difference_that_rounding_would_lose():
    """One tenth-rate epoch moves an adapter by less than bf16 resolves."""
    down, up, scaling = bf16_state()
    moved = down * (1 + 1e-3 * torch.randn_like(down)), up * (1 + 1e-3 * torch.randn_like(up))
    exact = scaling * ((moved[1].double() @ moved[0].double()) - (up.double() @ down.double())).T
    ours = product(thin_factors(*moved, scaling, torch.bfloat16)) - product(
        thin_factors(down, up, scaling, torch.bfloat16)
    )
    rounded = product(factors_rounded(*moved, scaling)) - product(factors_rounded(down, up, scaling))
    ours, rounded = (float((one - exact).norm() / exact.norm()) for one in (ours, rounded))
    assert ours < 0.05 < 0.5 < rounded, f"error of the difference: {ours:.2g}; of rounded factors: {rounded:.2g}"


def test_bf16_forward_is_nearer_to_the_exact_adapter_than_merging_or_rounding():
    """The change of a layer's output between two states, against float64."""
    down, up, scaling = bf16_state()
    base = nn.Linear(64, 96, bias=False).bfloat16().requires_grad_(False)
    x = torch.randn(4096, 64).bfloat16()
    moved = up + 0.01 * torch.randn_like(up)
    exact = scaling * (x.double() @ down.double().T) @ (moved - up).double().T

    def change(run):
        return float(((run(down, moved).double() - run(down, up).double()) - exact).norm() / exact.norm())

    def merged(down, up):
        return x @ (base.weight.float() + scaling * up @ down).bfloat16().T

    def rounded(down, up):
        return thin_linear(x, base, factors_rounded(down, up, scaling))[0]

    def ours(down, up):
        return thin_linear(x, base, thin_factors(down, up, scaling, torch.bfloat16))[0]

    errors = {run.__name__: change(run) for run in (ours, merged, rounded)}
    assert errors["ours"] < errors["merged"], f"merging would do better: {errors}"
    assert errors["ours"] < errors["rounded"], f"rounded factors would do better: {errors}"


def test_gradients_are_the_derivatives_of_the_forward():
    torch.manual_seed(6)
    base = nn.Linear(5, 7).double().requires_grad_(False)
    x, down, up = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (7, 2))
    )
    assert torch.autograd.gradcheck(lambda *args: _TrainedLinear.apply(*args, base, 1.7), (x, down, up)), (
        "the hand-written gradient of an adapted layer is wrong"
    )


def adapter_gradients(adapted, ids):
    adapted.zero_grad()
    causal = adapted.get_base_model()
    scored = torch.ones_like(ids, dtype=torch.bool)
    token_logprobs(head_of(causal), *gather_hidden(causal, ids, scored)).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in parameters(adapted).items()}


def test_training_has_pefts_gradients():
    adapted, ids = adapted_llama(torch.float64), some_ids()
    theirs = adapter_gradients(adapted, ids)
    with training(adapted):
        ours = adapter_gradients(adapted, ids)
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        gap = float((ours[name] - gradient).abs().max() / gradient.abs().max())
        assert gap < 1e-5, f"{name}: the gradient is {gap:.2g} from peft's"


def test_bf16_training_gradients_stay_near_fp32():
    """A and B have fp32 gradients whose error is that of bf16 activations, not of rounded factors."""
    ids = some_ids()
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        adapted = adapted_llama(torch.bfloat16)
        if dtype == torch.float32:
            adapted.float()  # the same numbers, computed in fp32
        with training(adapted):
            gradients.append(adapter_gradients(adapted, ids))
    for name, exact in gradients[1].items():
        assert gradients[0][name].dtype == torch.float32, f"{name} has a {gradients[0][name].dtype} gradient"
        cosine = float(torch.cosine_similarity(gradients[0][name].flatten(), exact.flatten(), dim=0))
        assert cosine > 0.98, f"{name}: cosine {cosine:.3f} with the fp32 gradient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_identical_states_score_exactly_zero(dtype):
    adapted = adapted_llama(dtype)
    rows = [Conversation(({"role": "assistant", "content": row["completion"]},), plain=True) for row in make_rows(9)]
    state = read_state(adapted)
    with scanning(adapted) as set_state:
        encoded = encode(tiny_tokenizer(), rows, max_length=64)
        scanned = scan_rows(adapted.get_base_model(), set_state, encoded, [(1, state, dict(state))], batch_tokens=50)
    for name in ("score_identity", "score_abs", "score_positive"):
        assert (scanned.epochs[0][name] == 0.0).all(), f"{name}: the two passes do not walk the same batches"


@pytest.mark.parametrize("block", [scanning, training])
def test_the_model_is_as_before_afterwards_even_after_an_error(block):
    """Also where its weights lie: equal numbers that lie otherwise are multiplied with other rounding on some processors."""
    adapted, ids = adapted_llama(), some_ids()
    state = {name: (value.clone(), value.stride()) for name, value in adapted.state_dict().items()}
    with torch.no_grad():
        before = log_p(adapted, ids)
    with pytest.raises(RuntimeError, match="stop here"), block(adapted):
        raise RuntimeError("stop here")
    assert not any("forward" in layer.__dict__ for layer in adapted.modules()), "a layer kept its replaced forward"
    assert not adapted.training, "the model was left in training mode"
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, state[name][0]), f"{name} has other numbers than before"
        assert value.stride() == state[name][1], f"{name} lies otherwise than before: what follows rounds otherwise"
        assert len(value.untyped_storage()) == value.nbytes, f"{name} holds on to more memory than its own"
    with torch.no_grad():
        torch.testing.assert_close(log_p(adapted, ids), before, rtol=0, atol=1e-5)


def test_dropout_is_on_while_fitting_and_off_while_scanning():
    adapted, ids = adapted_llama(dropout=0.5), some_ids()
    with training(adapted), torch.no_grad():
        assert not torch.equal(log_p(adapted, ids), log_p(adapted, ids)), "lora_dropout takes no effect while fitting"
    with scanning(adapted) as set_state:
        set_state(read_state(adapted))
        one, two = (log_p(adapted.get_base_model(), ids) for _ in range(2))
        assert torch.equal(one, two), "dropout is on while scanning"


# The joined forward of a scan


def test_layers_that_read_the_same_input_are_joined():
    adapted = adapted_llama()
    names = {id(module): name.rpartition(".")[2] for name, module in adapted.named_modules()}
    groups = [tuple(names[id(layer)] for layer in group.layers) for group in join(adapted)]
    one = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert groups == 2 * one


def test_joining_holds_no_weight_twice_and_changes_none():
    adapted = adapted_llama()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    for group in join(adapted):
        for layer in group.layers:
            assert layer.base_layer.weight.untyped_storage().data_ptr() == group.weight.untyped_storage().data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


@pytest.mark.parametrize("outputs", [(96, 32), (16,)], ids=["copies its input", "adds to its output"])
def test_a_joined_bf16_product_keeps_the_difference_of_two_states(outputs):
    """Layers of 64 inputs with biases, two states a hundredth apart: nearer to float64 than peft's own forward pass in bf16."""
    torch.manual_seed(8)

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.each = nn.ModuleList([nn.Linear(64, out) for out in outputs])
            self.embed, self.device = nn.Embedding(4, 64), torch.device("cpu")

        @property
        def base_model(self):
            return self

        def get_output_embeddings(self):
            return None

        def forward(self, input_ids):
            x = self.embed(input_ids)
            return [layer(x) for layer in self.each]

    adapted = get_peft_model(Layers().bfloat16(), LoraConfig(r=4, lora_alpha=8, target_modules=r"each\.\d"))
    for parameter in parameters(adapted).values():
        parameter.data = 0.2 * torch.randn_like(parameter.float())
    one = {name: value.detach().clone() for name, value in parameters(adapted).items()}
    two = {name: value + 0.01 * torch.randn_like(value) for name, value in one.items()}
    x = torch.randn(512, 64).bfloat16()
    layers = list(adapted.get_base_model().each)

    def exact(state):
        parts = []
        for at, layer in enumerate(layers):
            down, up = (state[f"base_model.model.each.{at}.lora_{name}.weight"].double() for name in "AB")
            weight, bias = (value.detach().double() for value in (layer.base_layer.weight, layer.base_layer.bias))
            base = x.double() @ weight.T + bias
            parts.append(base + 2.0 * (x.double() @ down.T) @ up.T)
        return torch.cat(parts, -1)

    (group,) = join(adapted)
    assert len(group.layers) == len(outputs)
    found = []
    for state in (one, two):
        for name, parameter in parameters(adapted).items():
            parameter.data = state[name].clone()
        group.refresh()
        with torch.inference_mode():
            found.append(torch.cat([group.forward(layer, x).double() for layer in layers], -1))
    error = (found[0] - exact(one)).norm() / exact(one).norm()
    assert error < 2**-8, f"{error:.2g} off: an output is another layer's, or a bias is lost"
    wanted = exact(two) - exact(one)
    slope = float(((found[1] - found[0]) * wanted).sum() / (wanted**2).sum())
    assert slope == pytest.approx(1.0, abs=0.02), "the difference of the two states is shrunk or lost"
    assert group.given is None, "an input or output outlives its use"


def test_quick_norms_are_the_models_norms():
    for dtype in (torch.float32, torch.bfloat16):
        adapted = adapted_llama(dtype)
        assert len(quick_norms(adapted)) == 5, "two norms a layer and one at the end"
        for norm in quick_norms(adapted):
            nn.init.normal_(norm.weight)
            x = torch.randn(7, 32).to(dtype)
            kept = x.clone()
            torch.testing.assert_close(_quick_norm(norm, x), norm(x))
            assert torch.equal(x, kept), "the input was overwritten"


def test_norms_of_another_kind_keep_their_own_forward():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return nn.functional.rms_norm(x, (8,), 1 + self.weight, self.variance_epsilon)

    assert quick_norms(nn.Sequential(Shifted())) == []


def test_attention_trains_in_fp32_under_a_bf16_model_on_a_cpu():
    model = tiny_llama(dtype=torch.bfloat16)
    ids = some_ids()
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with wide(model):
            assert model.config._attn_implementation != "sdpa"
            inside = model(input_ids=ids).logits
    assert model.config._attn_implementation == "sdpa", "the model is not as it was"
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, plain, rtol=0.05, atol=0.05)
    with wide(tiny_llama()):
        pass


@pytest.mark.parametrize("length", [UNIT - 1, UNIT, UNIT + 5])
@pytest.mark.parametrize("padded", [False, True], ids=["whole rows", "padded rows"])
@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_attention_over_aligned_lengths_is_the_same(length, padded, causal):
    if causal:
        model = tiny_llama()
    else:
        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64
        )
        model = BertModel(config).eval()
    ids = torch.randint(1, 50, (3, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, -4:] = 0
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask)[0]
        with aligned(model):
            assert model.config._attn_implementation != "sdpa"
            inside = model(input_ids=ids, attention_mask=mask)[0]
    assert model.config._attn_implementation == "sdpa", "the model is not as it was"
    torch.testing.assert_close(inside[mask > 0], plain[mask > 0], rtol=1e-5, atol=1e-5)
