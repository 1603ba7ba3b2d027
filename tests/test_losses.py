"""The pure loss functions against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pivotune.losses import chunked_cross_entropy, chunked_token_nats, contrastive, cosine, cosine_distance, pool_span

N, D, V = 11, 6, 13


def problem(dtype=torch.float64, n=N, bias=True):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, D, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.nn.Linear(D, V, bias=bias, dtype=dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return hidden, head, torch.randint(0, V, (n,), generator=draw)


def plain(hidden, head, targets):
    return F.cross_entropy(head(hidden).to(torch.promote_types(hidden.dtype, torch.float32)), targets, reduction="sum")


@pytest.mark.parametrize("rows", [1, 2, 5, N, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_equals_plain(rows, bias):
    hidden, head, targets = problem(bias=bias)
    sources = [hidden, *head.parameters()]
    expected = torch.autograd.grad(3.5 * plain(hidden, head, targets), sources)
    value = chunked_cross_entropy(
        hidden, targets, head, list(head.parameters()), vocab_size=V, logits_per_chunk=rows * V
    )
    torch.testing.assert_close(value, plain(hidden, head, targets), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(3.5 * value, sources), expected, rtol=1e-10, atol=1e-12)


def test_never_holds_more_rows_than_asked():
    hidden, head, targets = problem()
    seen = []

    def readout(chunk):
        seen.append(len(chunk))
        return head(chunk)

    chunked_cross_entropy(hidden, targets, readout, list(head.parameters()), vocab_size=V, logits_per_chunk=4 * V)
    assert seen == [4, 4, 3]


def test_gradcheck():
    hidden, head, targets = problem(n=4)
    weight = head.weight.detach().clone().requires_grad_()

    def value(h, w):
        return chunked_cross_entropy(h, targets, lambda x: F.linear(x, w), [w], vocab_size=V, logits_per_chunk=3 * V)

    assert torch.autograd.gradcheck(value, (hidden.detach().requires_grad_(), weight))


def test_only_what_requires_a_gradient_gets_one():
    hidden, head, targets = problem()
    arguments = dict(vocab_size=V, logits_per_chunk=4 * V)
    expected = torch.autograd.grad(plain(hidden, head, targets), [hidden, head.weight])

    frozen = chunked_cross_entropy(hidden, targets, head, (), **arguments)  # nothing listed: a frozen readout
    frozen.backward()
    torch.testing.assert_close(hidden.grad, expected[0])
    assert head.weight.grad is None and head.bias.grad is None

    head.bias.requires_grad_(False)
    chunked_cross_entropy(hidden.detach(), targets, head, list(head.parameters()), **arguments).backward()
    torch.testing.assert_close(head.weight.grad, expected[1])

    head.requires_grad_(False)
    constant = chunked_cross_entropy(hidden.detach(), targets, head, list(head.parameters()), **arguments)
    assert not constant.requires_grad
    torch.testing.assert_close(constant, plain(hidden, head, targets).detach())


def test_without_gradient_it_only_measures():
    hidden, head, targets = problem()
    modes = []

    def readout(chunk):
        modes.append(torch.is_grad_enabled() and (chunk.requires_grad or head.weight.requires_grad))
        return head(chunk)

    with torch.no_grad():
        value = chunked_cross_entropy(hidden, targets, readout, list(head.parameters()), vocab_size=V)
    torch.testing.assert_close(value, plain(hidden, head, targets).detach())
    assert not value.requires_grad
    assert not any(modes), "gradients are computed although nobody can ask for them"


def test_no_targets_is_a_connected_zero():
    hidden, head, targets = problem()
    value = chunked_cross_entropy(hidden[:0], targets[:0], head, list(head.parameters()), vocab_size=V)
    assert value.item() == 0.0
    value.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    for p in head.parameters():
        # DistributedDataParallel waits for every parameter, also on the rank whose labels are all masked.
        assert p.grad is not None and not p.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    hidden, head, targets = problem(dtype)
    value = chunked_cross_entropy(hidden, targets, head, list(head.parameters()), vocab_size=V, logits_per_chunk=2 * V)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain(hidden, head, targets))
    value.backward()
    actual = [hidden.grad, head.weight.grad]
    assert [g.dtype for g in actual] == [dtype, dtype]
    hidden.grad = head.weight.grad = None
    plain(hidden, head, targets).backward()
    for got, want in zip(actual, [hidden.grad, head.weight.grad], strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=2e-2, atol=2e-2)


def test_many_small_half_precision_chunks_do_not_lose_gradient():
    """Summed in bfloat16, chunk after chunk, small contributions would vanish."""
    hidden, head, targets = problem(torch.bfloat16, n=4096)
    sources = [head.weight]
    got = torch.autograd.grad(
        chunked_cross_entropy(hidden, targets, head, list(head.parameters()), vocab_size=V, logits_per_chunk=V), sources
    )[0].double()
    exact_head = torch.nn.Linear(D, V).double()
    exact_head.load_state_dict({k: v.double() for k, v in head.state_dict().items()})
    want = torch.autograd.grad(plain(hidden.detach().double(), exact_head, targets), [exact_head.weight])[0]
    assert (got - want).norm() < 2e-2 * want.norm()


@pytest.mark.parametrize("rows", [1, 2, 5, N, 100])
def test_token_nats_are_what_the_cross_entropy_sums(rows):
    hidden, head, targets = problem()
    seen = []

    def readout(chunk):
        seen.append(len(chunk))
        return head(chunk)

    nats = chunked_token_nats(hidden, targets, readout, vocab_size=V, logits_per_chunk=rows * V)
    assert nats.shape == (N,) and not nats.requires_grad and max(seen) <= rows
    want = [-torch.log_softmax(head(state), dim=-1)[target] for state, target in zip(hidden, targets, strict=True)]
    torch.testing.assert_close(nats, torch.stack(want).detach(), rtol=1e-12, atol=0)
    total = chunked_cross_entropy(hidden, targets, head, vocab_size=V, logits_per_chunk=rows * V)
    torch.testing.assert_close(nats.sum(), total.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_token_nats_of_half_precision_are_float32(dtype):
    hidden, head, targets = problem(dtype)
    nats = chunked_token_nats(hidden, targets, head, vocab_size=V)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.sum(), plain(hidden, head, targets).detach())


def test_no_targets_have_no_nats():
    hidden, head, targets = problem()
    nats = chunked_token_nats(hidden[:0], targets[:0], head, vocab_size=V)
    assert nats.shape == (0,) and nats.dtype == torch.float64


def test_cosine():
    a, b = torch.randn(2, 5, D, dtype=torch.float64).unbind()
    want = [(x @ y) / (x.norm() * y.norm()) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(cosine(a, b), torch.stack(want), rtol=1e-12, atol=1e-15)
    assert cosine(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_cosine_distance():
    a, b = torch.randn(2, 5, D, dtype=torch.float64).unbind()
    a.requires_grad_()
    keep = torch.tensor([True, False, True, True, False])
    expected = sum(1 - (x @ y) / (x.norm() * y.norm()) for x, y, k in zip(a, b, keep, strict=True) if k)
    value = cosine_distance(a, b, keep)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    assert not a.grad[~keep].any() and a.grad[keep].abs().min() > 0


def test_cosine_distance_of_dropped_rows_is_finite_whatever_they_hold():
    a = torch.randn(3, D, requires_grad=True)
    b = torch.randn(3, D)
    b[1] = 0.0
    value = cosine_distance(a, b, torch.tensor([True, False, True]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(a.grad).all()
    nobody = cosine_distance(a, b, torch.zeros(3, dtype=torch.bool))
    assert nobody.item() == 0.0 and nobody.requires_grad


def test_contrastive():
    a, b = torch.randn(2, 5, D, dtype=torch.float64).unbind()
    a.requires_grad_(), b.requires_grad_()
    with torch.no_grad():
        b[1] = torch.inf  # a row that is left out may hold anything
    keep = [0, 2, 3]
    expected = 0.0
    for n in keep:
        alike = {m: torch.exp(F.cosine_similarity(a[n], b[m], dim=0) / 0.2) for m in keep}
        expected = expected - torch.log(alike[n] / sum(alike.values()))
    value = contrastive(a, b, torch.tensor([True, False, True, True, False]), 0.2)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    for grad in (a.grad, b.grad):
        assert not grad[[1, 4]].any() and grad[keep].abs().min() > 0 and grad.isfinite().all()
    for nobody in (torch.zeros(5, dtype=torch.bool), torch.tensor([True] + [False] * 4)):
        value = contrastive(a, b, nobody, 0.2)
        assert value.item() == 0.0 and value.requires_grad
    assert contrastive(a.detach().bfloat16(), b.detach().bfloat16(), nobody, 0.2).dtype == torch.float32


@pytest.mark.parametrize("how", ["mean", "last_token"])
def test_pool_span(how):
    hidden = torch.randn(3, 7, D, dtype=torch.float64, requires_grad=True)
    start, end = torch.tensor([0, 2, 6]), torch.tensor([7, 5, 7])
    pooled = pool_span(hidden, start, end, how)
    for row, (s, e) in enumerate(zip(start, end, strict=True)):
        want = hidden[row, s:e].mean(dim=0) if how == "mean" else hidden[row, e - 1]
        torch.testing.assert_close(pooled[row], want, rtol=1e-12, atol=1e-12)
    pooled.sum().backward()
    assert not hidden.grad[1, :2].any() and not hidden.grad[1, 5:].any()


@pytest.mark.parametrize("how", ["mean", "last_token"])
def test_pool_span_ignores_what_is_outside(how):
    hidden = torch.randn(1, 5, D)
    hidden[0, 3:] = float("nan")  # padding may hold anything
    assert torch.isfinite(pool_span(hidden, torch.tensor([1]), torch.tensor([3]), how)).all()


def test_256k_logits_are_never_held_for_more_than_a_chunk():
    vocab, rows = 256_000, 300
    hidden = torch.randn(rows, 4, requires_grad=True)
    head = torch.nn.Linear(4, vocab, bias=False)
    held: list[int] = []

    def readout(states):
        held.append(len(states))
        return head(states)

    targets = torch.randint(vocab, (rows,))
    loss = chunked_cross_entropy(hidden, targets, readout, list(head.parameters()), vocab_size=vocab)
    assert sum(held) == rows and max(held) * vocab <= 2**25 < rows * vocab
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum"))
