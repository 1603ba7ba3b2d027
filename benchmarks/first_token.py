"""Time to the first answer token with a connection: ours, two prefills, and no connection.

    python -m benchmarks.first_token [--batch 16] [--prompt 256] [--hidden 512] [--layers 12] [--repeats 7]

The floor is one prefill and one more pass of one token: with P prompt tokens, (P + 1) / P of the plain prefill's
FLOPs. The peer is what the released implementation does, a whole second prefill; once batched as ours is, once one
prompt at a time as it does.
"""

from __future__ import annotations

import torch
from transformers.utils import logging

from benchmarks.timing import DEVICE, interleaved, options, random_llama, ratios, where
from pivotune.anatomy import Anatomy
from pivotune.connection import connect
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.taps import Injection, Tap


def main() -> None:
    args = options(__doc__, batch=16, prompt=256, hidden=512, layers=12, repeats=7)
    logging.set_verbosity_error()
    model = random_llama(args.hidden, args.layers, vocab=8000).eval()
    anatomy = Anatomy(model)
    d, L = anatomy.hidden_size, anatomy.num_layers
    connection = LinearConnection(model, CCTuningConfig(), torch.randn(L, d), torch.randn(d, d) / d**0.5)
    connect(model, connection)
    ids = torch.randint(3, 8000, (args.batch, args.prompt), device=DEVICE)
    last = torch.full((args.batch,), args.prompt - 1, device=DEVICE)

    def generate(ids: torch.Tensor, mode: str) -> torch.Tensor:
        mask = torch.ones_like(ids)
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=1, do_sample=False, connection=mode, pad_token_id=0
        )

    @torch.inference_mode()
    def two_prefills(ids: torch.Tensor) -> torch.Tensor:
        at = last[: len(ids)]
        with Tap(anatomy, at=at) as tap:
            anatomy.decoder(input_ids=ids, use_cache=False)
        pick = connection.pick(connection.transform(tap.states("feed_forward")), ids[:, -1])
        with Tap(anatomy, injections=[Injection(1, pick, at[:, None])]):
            return generate(ids, "none")

    assert torch.equal(generate(ids, "matrix"), two_prefills(ids)), "the two must answer alike"
    seconds = interleaved(
        {
            "no connection": lambda: generate(ids, "none"),
            "connected": lambda: generate(ids, "matrix"),
            "two prefills, batched": lambda: two_prefills(ids),
            "two prefills, one by one": lambda: [two_prefills(row[None]) for row in ids],
        },
        args.repeats,
    )
    print(f"{where()}\nbatch {args.batch}, {args.prompt} prompt tokens, {L} layers x {d}; {args.repeats} rounds")
    print(
        f"time to the first token over no connection (floor: {(args.prompt + 1) / args.prompt:.3f}), median [range]\n"
    )
    for name, ratio in ratios(seconds, "no connection").items():
        print(f"{name:26s} {ratio}")


if __name__ == "__main__":
    main()
