"""CC-Tuning at inference: the Transform Matrix, and the connection inside `generate()` and around a forward pass.

The connection changes nothing but the prompt's last token(s), from the layer behind it upward: every earlier token's
keys and values are those of an ordinary pass. So the released implementation's second prefill is not needed:

    prompt without its last token   -> the cache                                     (an ordinary prefill)
    last token, looking only        -> its feed-forward outputs v; the cache forgets that it saw the token
    last token, with the connection -> the logits of the first answer token, and the token's place in the cache

Taking the last token apart, instead of cropping it off afterwards, also works where a cache cannot be cropped: sliding
windows have evicted what the second look would need. With real English (`connection="english"`) the look is not needed
either. Decoding after the first token is untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.finite import broken
from pivotune.methods.cc_tuning import CCTuning, CCTuningConfig, DecisionMaker
from pivotune.taps import Injection, Tap, evaluating

Mode = Literal["none", "english", "matrix"]


class Connection:
    """A trained connection: what `connect` puts inside a model's `generate()`.

    Args:
        model: the causal LM, possibly wrapped by PEFT.
        config: the options it was trained with.
        decision_maker: (L, d) weight of the Decision Maker.
        transform_matrix: (d, d) or (L, d, d); None leaves only `none` and `english`.
    """

    def __init__(
        self, model: nn.Module, config: CCTuningConfig, decision_maker: Tensor, transform_matrix: Tensor | None = None
    ):
        self.anatomy = Anatomy(model)
        self.config = config
        self.decision_maker = DecisionMaker(self.anatomy.num_layers, self.anatomy.hidden_size, config).eval()
        if decision_maker.shape != self.decision_maker.weight.shape:
            raise PivotuneError(
                f"decision_maker.weight: got shape {tuple(decision_maker.shape)}, but this model needs "
                f"{tuple(self.decision_maker.weight.shape)} (layers, hidden size). The tensors belong to another model."
            )
        device = next(self.anatomy.head.parameters()).device
        self.decision_maker.weight = nn.Parameter(decision_maker.to(device), requires_grad=False)
        self.transform_matrix = None if transform_matrix is None else transform_matrix.to(device)

    def transform(self, v_BLd: Tensor) -> Tensor:
        """`v X`: the question's own activations mapped to stand in for the English ones, (B, L, d)."""
        assert self.transform_matrix is not None
        equation = "bld,de->ble" if self.transform_matrix.dim() == 2 else "bld,lde->ble"
        return torch.einsum(equation, v_BLd.to(self.transform_matrix.dtype), self.transform_matrix).to(v_BLd.dtype)

    def pick(self, v_BLd: Tensor, last_token_B: Tensor) -> Tensor:
        """(B, d): the activation that the Decision Maker lends to prompts that end in these tokens."""
        return self.decision_maker(v_BLd, self.anatomy.embeddings(last_token_B))

    def shares(self, v_BLd: Tensor, last_token_B: Tensor) -> Tensor:
        """(B, L): what part of that is which layer's; with hard selection a single 1 per row."""
        return self.decision_maker.shares(v_BLd, self.anatomy.embeddings(last_token_B))

    def activations(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """v at the last token of each prompt, padded on either side: (B, L, d)."""
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        with Tap(self.anatomy, feed_forward_at=_last_position(attention_mask)) as tap:
            self.anatomy.decoder(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            )
        return tap.feed_forward()

    def lend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        english_input_ids: Tensor | None = None,
        english_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What these prompts are lent, (B, d): one pass over their English counterparts or, where none are given, over
        the prompts themselves, whose activations the Transform Matrix maps. For `connected_at`.

        Args:
            input_ids, attention_mask: (B, T) the prompts, or contexts, without what continues them; padded on either
                side.
            english_input_ids, english_attention_mask: (B, S) their English counterparts.

        Raises:
            PivotuneError: no English counterparts, and no Transform Matrix either.
        """
        if english_input_ids is None:
            _check_mode("matrix", self)
            v = self.transform(self.activations(input_ids, attention_mask))
        else:
            english_mask = (
                torch.ones_like(english_input_ids) if english_attention_mask is None else english_attention_mask
            )
            v = self.activations(english_input_ids, english_mask)
        last = _last_position(attention_mask)[:, None]
        return self.pick(v, input_ids.gather(1, last)[:, 0].to(v.device))


@contextmanager
def connected_at(connection: Connection, vectors_Bd: Tensor, last_B: Tensor) -> Iterator[None]:
    """Within this context every forward pass of the model is connected, as the target pass of training is.

    The passes are ordinary ones over whole rows, without a cache: tokens behind the connection see it by attention.
    generate() does not belong here (`connect`).

    Args:
        connection: made for the model that runs.
        vectors_Bd: what is added behind `connection_layer`, from `Connection.lend`; a row of zeros is not connected.
        last_B: each row's position of the context's last token, padding counted. The connection is made there and at
            the `connection_tokens - 1` tokens before.
    """
    before = torch.arange(connection.config.connection_tokens, device=last_B.device)
    injection = Injection(connection.config.connection_layer, vectors_Bd, last_B[:, None] - before)
    with Tap(connection.anatomy, injection=injection):
        yield


def _last_position(attention_mask_BT: Tensor) -> Tensor:
    """(B,) position of the last real token of each row, padded on either side."""
    position = torch.arange(1, attention_mask_BT.shape[1] + 1, device=attention_mask_BT.device)
    return (attention_mask_BT * position).argmax(dim=1)


@dataclass
class _Request:
    """What one call of generate() asks for."""

    mode: Mode
    english: Tensor | None = None  # (B, L, d)
    connected: Tensor | None = None  # (B,) bool


def connect(model: nn.Module, connection: Connection, mode: Mode = "matrix") -> None:
    """Make `model.generate()` use the connection.

    generate() then takes four more arguments:
        connection: none, english or matrix; `mode` where it is not given.
        english_input_ids, english_attention_mask: (B, S) the prompts' English counterparts, for `english`.
        connected: (B,) bool, rows to connect; all where it is not given. English prompts should not be connected: that
            lowered the scores in the paper.

    Args:
        model: the causal LM, possibly wrapped by PEFT.
        connection: made for this very model.
        mode: the default.
    """
    _check_mode(mode, connection)
    lm = connection.anatomy.lm
    disconnect(lm)
    # Instance attributes shadow the class's methods: reversible, and invisible to save_pretrained.
    lm.generate = partial(_generate, connection, mode, lm.generate)


def disconnect(model: nn.Module) -> None:
    """Undo `connect`; nothing happens to a model that is not connected."""
    vars(Anatomy(model).lm).pop("generate", None)


def _generate(
    lent: Connection,
    default: Mode,
    plain_generate: Callable,
    *args: Any,
    connection: Mode | None = None,
    english_input_ids: Tensor | None = None,
    english_attention_mask: Tensor | None = None,
    connected: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    mode = connection or default
    _check_mode(mode, lent)
    request = _Request(mode, connected=connected)
    with torch.no_grad():
        if mode == "english":
            if english_input_ids is None:
                raise PivotuneError(
                    'generate(connection="english"): needs english_input_ids, the English counterpart of each prompt. '
                    'Without English text use connection="matrix".'
                )
            if english_attention_mask is None:
                english_attention_mask = torch.ones_like(english_input_ids)
            request.english = lent.activations(english_input_ids, english_attention_mask)
        if mode == "none":
            return plain_generate(*args, **kwargs)
        lm = lent.anatomy.lm
        lm._prefill = partial(_connected_prefill, lent, request, lm._prefill)
        try:
            return plain_generate(*args, **kwargs)
        finally:
            vars(lm).pop("_prefill", None)


def _connected_prefill(
    connection: Connection,
    request: _Request,
    prefill: Callable,
    input_ids: Tensor,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    **kwargs: Any,
) -> Any:
    """Stands in for `GenerationMixin._prefill`: same arguments, same result, with the connection made on the way."""
    cache = model_kwargs.get("past_key_values")
    if cache is None or model_kwargs.get("inputs_embeds") is not None or int(cache.get_seq_length()) > 0:
        raise PivotuneError(
            "generate(): the connection needs token ids, an empty cache and use_cache=True, because it is made between "
            "the prompt and its last token. Drop use_cache=False, past_key_values and inputs_embeds, or pass "
            'connection="none".'
        )
    rows, length = input_ids.shape
    tail = min(connection.config.connection_tokens, length)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    model_kwargs = {**model_kwargs, "attention_mask": mask}

    def run_prompt_but_tail() -> None:
        if length == tail:
            return
        shorter = {
            k: v[..., : length - tail] if k in _PER_TOKEN and v is not None else v for k, v in model_kwargs.items()
        }
        prefill(input_ids[:, : length - tail], generation_config, shorter, **kwargs)

    def run_tail() -> Any:
        return prefill(input_ids, generation_config, model_kwargs, **kwargs)

    run_prompt_but_tail()
    if request.mode == "english":
        assert request.english is not None
        v = _per_row(request.english, rows, "english_input_ids")
    else:
        last = torch.full((rows,), tail - 1, device=input_ids.device)
        with _forgetting(cache), Tap(connection.anatomy, feed_forward_at=last) as tap:
            run_tail()
        v = connection.transform(tap.feed_forward())
    vectors = connection.pick(v, input_ids[:, -1].to(v.device))
    if request.connected is not None:
        connected = _per_row(request.connected.to(vectors.device), rows, "connected")
        vectors = torch.where(connected[:, None], vectors, 0.0)
    everywhere = torch.arange(tail, device=vectors.device).expand(rows, -1)
    with Tap(connection.anatomy, injection=Injection(connection.config.connection_layer, vectors, everywhere)):
        return run_tail()


_PER_TOKEN = ("attention_mask", "position_ids", "token_type_ids", "cache_position")


def _per_row(values: Tensor, rows: int, option: str) -> Tensor:
    """One value per row of a batch that generate() may have expanded for beams or several samples."""
    if rows % len(values):
        raise PivotuneError(f"generate({option}=...): got {len(values)} rows for a batch of {rows} prompts.")
    return values.repeat_interleave(rows // len(values), dim=0)


def _check_mode(mode: str, connection: Connection) -> None:
    if mode not in get_args(Mode):
        raise PivotuneError(f"connection: got {mode!r}; choose none, english or matrix.")
    if mode == "matrix" and connection.transform_matrix is None:
        raise PivotuneError(
            "connection: 'matrix' needs a Transform Matrix, and this run has none. Fit one "
            "(pivotune.connection.fit_transform_matrix), or choose english or none."
        )


@contextmanager
def _forgetting(cache: Any) -> Iterator[None]:
    """Whatever is written to the key-value cache within this context is undone, whether or not it can be cropped.

    Dynamic layers replace their tensors on update, so keeping the old references suffices. Static layers write in
    place: their counters are copied, and of those that slide also the window's keys and values (a full one shifts).
    Keys and values of a static layer that does not slide are left: the next pass writes the same places.
    """
    saved = []
    for layer in cache.layers:
        in_place = getattr(layer, "is_compileable", False)
        copies = {
            name: (value, value.clone())
            for name, value in vars(layer).items()
            if in_place and torch.is_tensor(value) and (value.dim() < 2 or layer.is_sliding)
        }
        saved.append((layer, dict(vars(layer)), copies))
    try:
        yield
    finally:
        del cache.layers[len(saved) :]  # an empty dynamic cache gets its layers on first use
        for layer, attributes, copies in saved:
            vars(layer).clear()
            vars(layer).update(attributes)
            for tensor, copy in copies.values():
                tensor.copy_(copy)


# The Transform Matrix ------------------------------------------------------------------------------------------------


@dataclass
class TransformMatrix:
    """The least-squares map from a question's own activations to those of its English counterpart.

    Attributes:
        weight: X, (d, d) shared by all layers or (L, d, d); float32.
        report: pairs, held_out_pairs, ridge, r2 (held-out, over all layers), r2_per_layer. The last two are None where
            a single pair is held out.
    """

    weight: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        r2 = "unknown (a single pair)" if self.report["r2"] is None else f"{self.report['r2']:.3f}"
        pairs, held_out = self.report["pairs"], self.report["held_out_pairs"]
        return f"Transform Matrix: fitted on {pairs} pairs; R^2 on {held_out} held-out pairs: {r2}."


class NormalEquations:
    """Streaming least squares `min ||S X - T||^2 + ridge * mean(diag(S'S)) ||X||^2`, in float64.

    Rows are added batch by batch; memory is that of two d x d matrices per X, however many rows come.

    Args:
        groups: how many separate X to fit (1 shared, or one per layer).
        size: d.
    """

    def __init__(self, groups: int, size: int, device: torch.device | str = "cpu"):
        self.gram = torch.zeros(groups, size, size, dtype=torch.float64, device=device)
        self.cross = torch.zeros_like(self.gram)

    def add(self, source_GNd: Tensor, target_GNd: Tensor) -> None:
        """Take in rows: (G, N, d) each."""
        source = source_GNd.double()
        self.gram += source.mT @ source
        self.cross += source.mT @ target_GNd.double()

    def solve(self, ridge: float) -> Tensor:
        """X, (G, d, d) in float64. With ridge 0 and too few rows, the solution of least norm."""
        scale = self.gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        if ridge == 0:
            return torch.linalg.pinv(self.gram, hermitian=True) @ self.cross
        penalty = (ridge * scale)[:, None, None] * torch.eye(
            self.gram.shape[-1], dtype=torch.float64, device=scale.device
        )
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(self.gram + penalty))


class RunningR2:
    """Streaming R^2, in float64: 1 - (squared error) / (squared distance of the targets from their mean).

    Each group's targets are measured about that group's own mean. Rows are centred on their own batch before they are
    squared, and the batches' means enter apart (Chan et al. 1979): far from the origin, where some features of language
    models lie, a sum of raw squares would lose the digits that matter.

    Args:
        groups: how many separate R^2 to keep, e.g. one per layer.
        size: d.

    Attributes:
        count: rows so far.
    """

    def __init__(self, groups: int, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._mean = torch.zeros(groups, size, dtype=torch.float64, device=device)
        self._error = torch.zeros(groups, dtype=torch.float64, device=device)
        self._spread = torch.zeros_like(self._error)

    def add(self, predicted_GNd: Tensor, target_GNd: Tensor) -> None:
        """Take in rows: (G, N, d) each."""
        added = target_GNd.shape[1]
        if not added:
            return
        target_GNd = target_GNd.to(self._mean)
        mean_Gd = target_GNd.mean(dim=1)
        shift_Gd, total = mean_Gd - self._mean, self.count + added
        self._error += ((predicted_GNd.to(self._mean) - target_GNd) ** 2).sum(dim=(1, 2))
        self._spread += ((target_GNd - mean_Gd[:, None]) ** 2).sum(dim=(1, 2))
        self._spread += (shift_Gd**2).sum(dim=1) * (self.count * added / total)
        self._mean += shift_Gd * (added / total)
        self.count = total

    def overall(self) -> float | None:
        """Of all groups together, so that those of large activations weigh most. None as in `per_group`."""
        per_group = self._explained(self._error.sum()[None], self._spread.sum()[None])
        return None if per_group is None else per_group[0]

    def per_group(self) -> list[float | None] | None:
        """(G,). None for fewer than two rows, and for a group whose targets are all the same."""
        return self._explained(self._error, self._spread)

    def _explained(self, error_G: Tensor, spread_G: Tensor) -> list[float | None] | None:
        if self.count < 2:
            return None
        return [None if s == 0 else 1.0 - e / s for e, s in zip(error_G.tolist(), spread_G.tolist(), strict=True)]


def fit_transform_matrix(
    method: CCTuning,
    dataset: Any,
    collator: Callable[[list[dict]], dict[str, Tensor]],
    *,
    batch_size: int = 16,
    held_out: float = 0.1,
    seed: int = 0,
) -> TransformMatrix:
    """Fit the Transform Matrix on parallel questions, and say how well it does on questions it was not fitted on.

    Nothing is stored per example: normal equations are summed in one pass, R^2 in a second over the held-out pairs.

    Args:
        method: the trained method. Under FSDP2 every rank must call this, with the same dataset.
        dataset: tokenised examples as from `pivotune.data.tokenize_examples`; those without English are left out.
        collator: makes a batch of them.
        batch_size: pairs per forward pass.
        held_out: share of the pairs kept for R^2.
        seed: of the choice of pairs.

    Raises:
        PivotuneError: fewer than two pairs, activations that are not finite, or equations without a solution.
    """
    config = method.cc_tuning
    pairs = [i for i, ids in enumerate(dataset["english_prompt_ids"]) if ids]
    if len(pairs) < 2:
        raise PivotuneError(
            f"transform matrix: needs parallel questions, and the data have {len(pairs)} with an English counterpart."
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[: config.matrix_pairs]
    chosen = [pairs[i] for i in order.tolist()]
    split = min(max(2, round(held_out * len(chosen))), len(chosen) // 2)
    held, fitted = chosen[:split], chosen[split:]

    anatomy, shared = method.anatomy, config.matrix == "shared"
    device = method.decision_maker.weight.device

    def activations(indices: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), batch_size):
            batch = collator([dataset[i] for i in indices[start : start + batch_size]])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            out = method(batch, activations=True)
            yield out["target"].transpose(0, 1), out["english"].transpose(0, 1)  # (L, B, d)

    with evaluating(method):
        equations = NormalEquations(1 if shared else anatomy.num_layers, anatomy.hidden_size, device)
        for source, target in activations(fitted):
            equations.add(*((x.flatten(0, 1)[None] if shared else x) for x in (source, target)))
        weight = _solved(equations, config.ridge)
        r2 = RunningR2(anatomy.num_layers, anatomy.hidden_size, device)
        for source, target in activations(held):
            r2.add(source.double() @ weight, target)
    report = {
        "pairs": len(fitted),
        "held_out_pairs": len(held),
        "ridge": config.ridge,
        "r2": r2.overall(),
        "r2_per_layer": r2.per_group(),
    }
    return TransformMatrix((weight[0] if shared else weight).float(), report)


def _solved(equations: NormalEquations, ridge: float) -> Tensor:
    if broken(equations.gram) or broken(equations.cross):
        raise PivotuneError("transform matrix: the model's activations on data.train have NaN or infinity.")
    try:
        weight = equations.solve(ridge)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # exported, though not in its __all__
        raise PivotuneError(
            f"transform matrix: cannot be solved with cc_tuning.ridge: {ridge:g}. Raise it; 0.01 is usual."
        ) from error
    if broken(weight.float()):
        raise PivotuneError(f"transform matrix: overflows with cc_tuning.ridge: {ridge:g}. Raise it; 0.01 is usual.")
    return weight
