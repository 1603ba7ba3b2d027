"""Are the tests as strong as before? Faults are put into a copy of the source one by one, and tests have to notice.

    .venv/bin/python -m benchmarks.injected_faults                  # all, on the tests beside each module
    .venv/bin/python -m benchmarks.injected_faults --at COMMIT      # the same faults in the tree of a commit
    .venv/bin/python -m benchmarks.injected_faults --only taps      # those whose file's name holds this

A fault is a small change that a tired person could make: a sign, a forgotten division, the wrong layer. Each line of
the table names the file, what stands there, what is put in its place, and the tests to run: these are few, so that
dozens of faults take minutes. A fault whose text is not found at a commit is said to be absent there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """Attributes: `file` below src/pivotune; `old`, found once in it, and `new`; `tests` below tests, of which only
    those whose name holds `words` run."""

    file: str
    old: str
    new: str
    tests: str
    words: str = ""


FAULTS = (
    Fault(
        "losses.py",
        "torch.where(keep_N, 1.0 - cosine(a_ND, b_ND), 0.0)",
        "(1.0 - cosine(a_ND, b_ND))",
        "test_losses.py",
    ),
    Fault("losses.py", "a_KD @ b_KD.T / temperature", "a_KD @ b_KD.T", "test_losses.py"),
    Fault("losses.py", "grad_hidden * upstream.to(grad_hidden.dtype)", "grad_hidden", "test_losses.py"),
    Fault("losses.py", "(position_T < end_B[:, None])", "(position_T <= end_B[:, None])", "test_losses.py"),
    Fault(
        "taps.py", "return hidden_BTD + here_BT[..., None] * added_BTD", "return hidden_BTD + added_BTD", "test_taps.py"
    ),
    Fault("taps.py", "with _Hooked(hooks):\n", "if True:\n", "test_method.py", "checkpointing"),
    Fault(
        "anatomy.py",
        "functional_call(self.head, _detached(self.head), (hidden,))",
        "self.head(hidden)",
        "test_anatomy.py",
    ),
    Fault("method.py", "if counts is None else counts", "", "test_trainer.py test_training.py", "eight_by_one"),
    Fault(
        "method.py",
        "target.final[:, :-1][keep]",
        "target.final[:, 1:][keep]",
        "test_method.py objectives/test_plain.py",
    ),
    Fault("trainer.py", "loss = loss * self.accelerator.num_processes", "pass", "test_distributed.py"),
    Fault(
        "trainer.py",
        "sum(weight * means[name]",
        "sum(means[name]",
        "test_trainer.py test_training.py test_proportions.py",
    ),
    Fault(
        "trainer.py",
        "self._check_numbers(optimizer=True)",
        "self._check_numbers()",
        "test_trainer.py test_training.py",
        "broken",
    ),
    Fault(
        "checkpoint.py",
        "not (Path(folder) / UNFINISHED).exists()",
        "True",
        "test_checkpoint.py test_training_output.py",
    ),
    Fault("resume.py", "digest.update(part.fill_null(-1)", "digest.copy().update(part.fill_null(-1)", "test_resume.py"),
    Fault(
        "objectives/deep_supervision/objective.py",
        'named = {"last": anatomy.num_layers, "same": layer}',
        'named = {"last": layer, "same": layer}',
        "objectives/deep_supervision/test_objective.py",
    ),
    Fault(
        "objectives/deep_supervision/objective.py",
        "english_PD = english_PD.detach()",
        "pass",
        "objectives/test_together.py",
    ),
    Fault(
        "objectives/deep_supervision/objective.py",
        'batch["prompt_length"] - 1, (batch["labels"]',
        'batch["prompt_length"], (batch["labels"]',
        "objectives/deep_supervision/test_objective.py",
        "every_option",
    ),
    Fault(
        "objectives/deep_supervision/settle.py",
        'return [name for name in ("conversion_layer", "thinking_layer")',
        'return [name for name in ("thinking_layer",)',
        "objectives/deep_supervision/test_settle.py",
    ),
    Fault("objectives/cc_tuning/decision_maker.py", "if self.training:", "if True:", "objectives/cc_tuning"),
    Fault(
        "objectives/cc_tuning/decision_maker.py",
        "(v_PLd + e_Pd[:, None, :]).mean(dim=1)",
        "(v_PLd + e_Pd[:, None, :]).sum(dim=1)",
        "objectives/cc_tuning/test_decision_maker.py",
    ),
    Fault(
        "objectives/cc_tuning/connection.py",
        "with _forgetting(cache), Tap(",
        "with Tap(",
        "objectives/cc_tuning/test_connection.py",
        "two_prefills",
    ),
    Fault(
        "objectives/cc_tuning/connection.py",
        '"bld,lde->ble"',
        '"bld,led->ble"',
        "objectives/cc_tuning/test_connection.py",
        "options",
    ),
    Fault(
        "objectives/cc_tuning/transform_matrix.py",
        "(ridge * scale)[:, None, None]",
        "(ridge * torch.ones_like(scale))[:, None, None]",
        "objectives/cc_tuning/test_transform_matrix.py",
    ),
    Fault(
        "objectives/cc_tuning/transform_matrix.py",
        "held, fitted = chosen[:split], chosen[split:]",
        "held, fitted = chosen[:split], chosen",
        "objectives/cc_tuning/test_transform_matrix.py",
    ),
    Fault(
        "data/continuation.py",
        "prompt_P1[pair, 0] - 1 + k",
        "prompt_P1[pair, 0] + k",
        "objectives/deep_supervision/test_objective.py",
        "families or every_family",
    ),
    Fault(
        "data/collate.py",
        '[IGNORE] * row["prompt_length"] + list(row["input_ids"][row["prompt_length"] :])',
        'list(row["input_ids"])',
        "data/test_collate.py",
    ),
    Fault(
        "generation.py",
        "slice(None if max_prompt_tokens is None else -max_prompt_tokens, None)",
        "slice(None, max_prompt_tokens)",
        "evaluation/test_engines.py evaluation/test_runner.py",
    ),
    Fault(
        "uncertainty.py", "min(1.0, (len(tested) - rank) * p[k])", "min(1.0, len(tested) * p[k])", "test_uncertainty.py"
    ),
    Fault("uncertainty.py", "np.std(self.seeds, ddof=1)", "np.std(self.seeds)", "test_uncertainty.py"),
    Fault(
        "lens/similarity.py",
        "from_english = parallel > columns_nN.amax(dim=1) + TIE",
        "from_english = parallel >= columns_nN.amax(dim=1) - 1.0",
        "lens/test_similarity.py",
    ),
    Fault(
        "lens/entropy.py",
        "torch.special.entr(logits_nV.softmax(dim=-1))",
        "torch.special.entr(logits_nV.softmax(dim=-1)).mul(1.4427)",
        "lens/test_entropy.py",
    ),
    Fault(
        "lens/reading.py",
        "torch.bincount(pair_n, minlength=len(english_PK))[:, None]",
        "english_PK.shape[1]",
        "lens objectives/deep_supervision/test_measure.py",
    ),
    Fault(
        "lens/tuned.py",
        "return anatomy.frozen_lens(self.mapped(layer, states_nd))",
        "return anatomy.frozen_lens(states_nd)",
        "lens/test_tuned.py",
    ),
    Fault(
        "proportions.py",
        "share = weight * _norm(term, parameters)",
        "share = _norm(term, parameters)",
        "test_proportions.py",
        "one_by_one",
    ),
    Fault(
        "evaluation/engines.py",
        "return text.strip()",
        "return text",
        "evaluation/test_engines.py evaluation/test_runner.py",
        "answer",
    ),
    Fault(
        "evaluation/results.py",
        "torn = Torn(len(lines) + 1, sum(len(line) + 1 for line in lines)) if rest else None",
        "torn = None",
        "evaluation/test_results.py",
    ),
    Fault("evaluation/adherence.py", 'letters["Kana"] += letters.pop("Han")', "pass", "evaluation/test_adherence.py"),
    Fault("tokens.py", "tokenizer.pad_token = fitting", "tokenizer.pad_token = tokenizer.eos_token", "test_tokens.py"),
    Fault("export.py", 'kept |= {"adapter": False', 'kept |= {"adapter": True', "test_export.py test_serving.py"),
    Fault("lab/trial.py", "a == q.text.answer.strip()", "a in q.text.answer", "lab/test_trial.py lab/test_demo.py"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", metavar="COMMIT", help="instead of the files as they are")
    parser.add_argument("--only", default="", help="faults in files whose name holds this")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy(tree, asked.at)
        chosen = [fault for fault in FAULTS if asked.only in fault.file]
        outcomes = [injected(tree, fault) for fault in chosen]
    counted = {word: sum(one.startswith(word) for one in outcomes) for word in ("caught", "MISSED", "absent")}
    print(", ".join(f"{count} {word}" for word, count in counted.items()))
    sys.exit(bool(counted["MISSED"]))


def copy(tree: Path, commit: str | None) -> None:
    """What git knows of, as it is or as it was."""
    if commit is not None:
        tree.mkdir()
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x"], cwd=tree, input=packed.stdout, check=True)
        return
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)


def injected(tree: Path, fault: Fault) -> str:
    """Put it in, run its tests, take it out; what came of it, which is printed too."""
    path, began = tree / "src" / "pivotune" / fault.file, time.perf_counter()
    sound = path.read_text(encoding="utf-8") if path.exists() else ""
    tests = [f"tests/{name}" for name in fault.tests.split() if (tree / "tests" / name).exists()]
    if sound.count(fault.old) != 1 or not tests:
        outcome = "absent"
    else:
        path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
        try:
            outcome = run(tree, tests, fault.words)
        finally:
            path.write_text(sound, encoding="utf-8")
    first = " ".join(fault.old.split())
    print(f"{outcome:70} {fault.file}: {first[:60]} ({time.perf_counter() - began:.0f} s)", flush=True)
    return outcome


def run(tree: Path, tests: list[str], words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        [*command, *(["-k", words] if words else [])], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode == 0:
        return "MISSED"
    named = re.search(r"^(?:FAILED|ERROR) \S*?::(\w+)", done.stdout, re.M)
    if done.returncode == 1 and named:
        return f"caught by {named[1]}"
    raise SystemExit(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
