"""One reader per benchmark and publisher's format: files under DATA_DIR -> located items, in the file's order.

A reader gives ("path:line", Item) pairs without `english`; `catalogue.load` joins the languages. Where the hub's rows
have a shape of their own, the reader makes such rows of its file, and `<benchmark>_items` makes items of both.

The text is the publisher's: white space at the ends of free text is stripped, prompts are left as they are, and so is
what the harness prints as it stands in its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pivotune.data.report import DataError
from pivotune.evaluation.benchmarks.files import (
    Folder,
    read_json,
    read_jsonl,
    read_lines,
    read_records,
    read_zipped_csv,
    records,
    text,
    texts,
)
from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.prompts import instructed_prompt, passage_prompt, question_prompt

Located = tuple[str, Item]
LocatedRow = tuple[str, dict[str, Any]]
# (folder, language, split) -> items with their places
Reader = Callable[[Folder, str, str], list[Located]]

XNLI_LABELS = ("entailment", "neutral", "contradiction")
LETTERS = ("A", "B", "C", "D")
# Fewer rows than this may share one label by chance.
_ROWS_TO_JUDGE = 20
# (language, id)
_TRUTHFULQA_WITHOUT_WRONG_ANSWER = {("hi", 29)}
_CHECK = "check that this is the benchmark's file, or download it again"


def read_xquad(folder: Folder, language: str, split: str) -> list[Located]:
    """XQuAD (Artetxe et al., 2020), SQuAD's JSON, without the white space at the ends of contexts and questions.

    The hub's rows have none either, and the prompt is that of the harness's task xquad_<language>, which reads these.
    """
    return xquad_items(_stripped(_squad(folder, f"xquad/xquad.{language}.json")), language)


def read_mlqa(folder: Folder, language: str, split: str) -> list[Located]:
    """MLQA (Lewis et al., 2020), context and question in one language, with their white space, as on the hub."""
    return mlqa_items(_squad(folder, f"mlqa_dev/{split}-context-{language}-question-{language}.json"), language)


def read_cc_xquad(folder: Folder, language: str, split: str) -> list[Located]:
    """XQuAD as CC-Tuning asks it: its own prompts where the folder has them, else XQuAD in their layout.

    The ids are line numbers in the first case and XQuAD's in the second, so that results from different prompts are
    never taken for the same questions.
    """
    if folder.has("cctuning/XQuAD"):
        return [
            (where, _prompted("cc_xquad", language, number, prompt, answers=(_gold_text(gold, place),)))
            for where, number, prompt, place, gold in _cc_pairs(folder, "XQuAD", "split", "ans", language, str)
        ]
    rows = _stripped(_squad(folder, f"xquad/xquad.{language}.json"))
    return _passage_items("cc_xquad", rows, language, instructed_prompt, language)


def xquad_items(rows: Iterable[LocatedRow], language: str) -> list[Located]:
    """Of rows with id, context, question and answers, as on the hub."""
    return _passage_items("xquad", rows, language, passage_prompt, language)


def mlqa_items(rows: Iterable[LocatedRow], language: str) -> list[Located]:
    """Of the same rows; the harness words the prompt in English."""
    return _passage_items("mlqa", rows, language, passage_prompt, "en")


def _passage_items(
    benchmark: str, rows: Iterable[LocatedRow], language: str, prompt: Callable[[str, str, str], str], wording: str
) -> list[Located]:
    items = []
    for where, row in rows:
        context, question = text(row, "context", where), text(row, "question", where)
        item = Item(
            id=text(row, "id", where),
            benchmark=benchmark,
            language=language,
            context=context,
            question=question,
            prompt=prompt(context, question, wording),
            answers=_aliases(row["answers"]["text"], where),
        )
        items.append((where, item))
    return items


def _squad(folder: Folder, relative: str) -> Iterator[LocatedRow]:
    """The questions of a SQuAD file as the hub's rows."""
    path = folder.find(relative)
    articles = records(read_json(path, dict), "data", str(path))
    if not articles:
        raise DataError(str(path), "empty file", "holds no article", _CHECK)
    number = 0
    for nth, article in enumerate(articles, start=1):
        for paragraph in records(article, "paragraphs", f"{path}: article {nth}"):
            for asked in records(paragraph, "qas", f"{path}: article {nth}"):
                number += 1
                where = f"{path}: question {number}"
                answers = [text(answer, "text", where) for answer in records(asked, "answers", where)]
                yield where, {**asked, "context": text(paragraph, "context", where), "answers": {"text": answers}}


def _stripped(rows: Iterable[LocatedRow]) -> Iterator[LocatedRow]:
    for where, row in rows:
        yield where, {**row, **{key: text(row, key, where).strip() for key in ("context", "question")}}


def read_xnli(folder: Folder, language: str, split: str) -> list[Located]:
    """XNLI (Conneau et al., 2018): premise, hypothesis and label per line, separated by tabs; no ids."""
    rows = []
    for where, line in read_lines(folder.find(f"xnli_dev/{split}-{language}.tsv")):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            problem = f"{len(columns)} columns ({line[:60]!r}), expected premise, hypothesis and label"
            raise DataError(where, "malformed line", problem, _CHECK)
        premise, hypothesis, label = columns
        rows.append(
            (where, {"premise": premise, "hypothesis": hypothesis, "label": index_of(label, XNLI_LABELS, where)})
        )
    return xnli_items(rows, language)


def xnli_items(rows: Iterable[LocatedRow], language: str) -> list[Located]:
    """Of rows with premise, hypothesis and the number of the label. Their order is the same in every language."""
    items = []
    for number, (where, row) in enumerate(rows, start=1):
        gold = _gold(row, "label", range(len(XNLI_LABELS)), where)
        item = Item(
            id=str(number),
            benchmark="xnli",
            language=language,
            context=text(row, "premise", where),
            question=text(row, "hypothesis", where),
            options=XNLI_LABELS,
            gold=gold,
            answers=(XNLI_LABELS[gold],),
        )
        items.append((where, item))
    return items


def read_xcopa(folder: Folder, language: str, split: str) -> list[Located]:
    """XCOPA (Ponti et al., 2020) and English COPA: JSON lines.

    Raises:
        DataError: also where all labels are the same. The test files of the publisher's folder are so: COPA's test
            labels are withheld there, and the zeros in their place are no golds.
    """
    path = folder.find(f"xcopa/{split}-{language}.jsonl")
    items = xcopa_items(read_jsonl(path, dict), language)
    if len(items) >= _ROWS_TO_JUDGE and len({item.gold for _, item in items}) == 1:
        problem = f"all {len(items)} labels are {items[0][1].gold}, so the golds are withheld"
        raise DataError(str(path), "no golds", problem, "use split 'val', or the test split from the hub")
    return items


def xcopa_items(rows: Iterable[LocatedRow], language: str) -> list[Located]:
    """Of the publisher's rows, which are those of the hub."""
    items = []
    for where, row in rows:
        options = (text(row, "choice1", where).strip(), text(row, "choice2", where).strip())
        gold, number, question = _gold(row, "label", range(2), where), row.get("idx"), text(row, "question", where)
        if type(number) is not int:
            raise DataError(where, "bad field", f"field 'idx' is {number!r}, expected a number", _CHECK)
        index_of(question, ("cause", "effect"), where)
        item = Item(
            id=str(number),
            benchmark="xcopa",
            language=language,
            context=text(row, "premise", where).strip(),
            question=question,
            options=options,
            gold=gold,
            answers=(options[gold],),
        )
        items.append((where, item))
    return items


def read_truthfulqa(folder: Folder, language: str, split: str) -> list[Located]:
    """TruthfulQA (Lin et al., 2022) as MC1: which of the options is the best answer?

    The right option is `best_answer`; the wrong ones are `incorrect_answers` in the published order, without empty
    ones, repetitions and any that equals the best answer. `correct_answers` other than the best are left out, as MC1
    does. English publishes these very lists as `mc1_targets`.

    Published lists have the right option first, where a tie would count as right. Here the list is rotated so that it
    stands at the question's number modulo the number of options: fixed, and the same in every language with as many.

    One Hindi question is left out: its only wrong answer is translated into the right one.

    The id is the English one. A translated id, "generation/validation/N", is the English id minus 1.
    """
    name = "en" if language == "en" else f"{language}_gen"
    items = []
    for where, record in read_records(folder.find(f"truthfulqa/{name}.json")):
        number = record["id"] if language == "en" and "id" in record else _translated_id(record, where)
        if type(number) is not int:
            raise DataError(where, "bad field", f"field 'id' is {number!r}, expected a number", _CHECK)
        best = text(record, "best_answer", where).strip()
        wrong = dict.fromkeys(answer.strip() for answer in texts(record, "incorrect_answers", where))
        options = [best, *(answer for answer in wrong if answer not in ("", best))]
        if (language, number) in _TRUTHFULQA_WITHOUT_WRONG_ANSWER:
            continue
        if len(options) < 2:
            raise DataError(where, "bad field", "no incorrect answer differs from the best one", _CHECK)
        items.append((where, mc1_item(str(number), number, text(record, "question", where), options, language)))
    return items


def mc1_item(key: str, number: int, question: str, options: Sequence[str], language: str) -> Item:
    """A question of TruthfulQA with this id; of `options` the first is right, and is rotated to `number` modulo all."""
    gold = number % len(options)
    return Item(
        id=key,
        benchmark="truthfulqa",
        language=language,
        question=question.strip(),
        options=(*options[len(options) - gold :], *options[: len(options) - gold]),
        gold=gold,
        answers=(options[0],),
    )


def _translated_id(record: dict[str, Any], where: str) -> int:
    matched = re.fullmatch(r"generation/validation/(\d+)", text(record, "id", where))
    if not matched:
        problem = f"field 'id' is {record['id']!r}, expected 'generation/validation/<number>'"
        raise DataError(where, "bad field", problem, _CHECK)
    return int(matched[1]) + 1


def read_mmlu(folder: Folder, language: str, split: str) -> list[Located]:
    """MMLU (Hendrycks et al., 2021): English CSV files in a zip archive, translations (Okapi) as JSON.

    The id is subject/split/row, the row counted from 0 in the English file.
    """
    if language == "en":
        return mmlu_items(_english_mmlu(folder, split), language, split)
    return mmlu_items(read_records(folder.find(f"mmlu/{language}_{split}.json")), language, split)


def mmlu_items(rows: Iterable[LocatedRow], language: str, split: str) -> list[Located]:
    """Of Okapi's rows, which are those of the hub. Options keep their white space: the harness prints them so."""
    items = []
    for where, row in rows:
        key, answer = text(row, "id", where), text(row, "answer", where)
        if not re.fullmatch(rf"\w+/{split}/\d+", key):
            problem = f"field 'id' is {key!r}, expected '<subject>/{split}/<row>'"
            raise DataError(where, "bad field", problem, _CHECK)
        item = Item(
            id=key,
            benchmark="mmlu",
            language=language,
            question=text(row, "instruction", where).strip(),
            subject=key.split("/")[0],
            options=tuple(text(row, f"option_{letter}", where) for letter in "abcd"),
            labels=LETTERS,
            gold=index_of(answer, LETTERS, where),
            answers=(answer,),
        )
        items.append((where, item))
    return items


def _english_mmlu(folder: Folder, split: str) -> Iterator[LocatedRow]:
    path = folder.find("mmlu/en_mmlu.zip")
    for file, name, rows in read_zipped_csv(path, f"data/{split}"):
        subject = name.removesuffix(f"_{split}")
        for number, row in enumerate(rows):
            where = f"{file}: row {number}"
            if len(row) != 6 or not all(cell.strip() for cell in row):
                problem = f"{len(row)} cells, expected a question, four options and a letter, none empty"
                raise DataError(where, "malformed line", problem, _CHECK)
            columns = ("instruction", "option_a", "option_b", "option_c", "option_d", "answer")
            yield where, {"id": f"{subject}/{split}/{number}", **dict(zip(columns, row, strict=True))}


def read_mkqa(folder: Folder, language: str, split: str) -> list[Located]:
    """The 1,000 MKQA questions (Longpre et al., 2021) of CC-Tuning's files, without their prompt, in ours."""
    return [
        (where, mkqa_item(number, _mkqa_question(prompt, where), golds, language, place))
        for where, number, prompt, place, golds in _cc_pairs(
            folder, "MKQA", "split_sample", "ans_sample", language, list
        )
    ]


def mkqa_item(key: str, question: str, answers: Sequence[str], language: str, where: str) -> Item:
    """A question of MKQA; `where` is the place of its answers."""
    return Item(
        id=key,
        benchmark="mkqa",
        language=language,
        question=question,
        prompt=question_prompt(question, language),
        answers=_aliases(answers, where),
    )


def read_cc_mkqa(folder: Folder, language: str, split: str) -> list[Located]:
    """MKQA with CC-Tuning's prompts."""
    return [
        (where, _prompted("cc_mkqa", language, n, p, question=_mkqa_question(p, where), answers=_aliases(g, place)))
        for where, n, p, place, g in _cc_pairs(folder, "MKQA", "split_sample", "ans_sample", language, list)
    ]


def _mkqa_question(prompt: str, where: str) -> str:
    parts = prompt.split("\n\n")
    if len(parts) < 3:
        raise DataError(where, "wrong file", f"{prompt[:60]!r} has no question between two empty lines", _CHECK)
    return "\n\n".join(parts[1:-1]).strip()


def read_xstorycloze(folder: Folder, language: str, split: str) -> list[Located]:
    """The 1,511 stories of XStoryCloze's evaluation split (Lin et al., 2022), out of CC-Tuning's prompts.

    Those run the four sentences of a story together without a space; `_respaced` puts the spaces back.
    """
    items = []
    for where, number, prompt, place, gold in _cc_pairs(folder, "XStoryCloze", "split", "ans", language, str):
        story, options = _split_options(prompt, ("1", "2"), where)
        items.append(
            (where, story_item(number, _respaced(story), options, index_of(gold, ("1", "2"), place), language))
        )
    return items


def story_item(key: str, story: str, endings: tuple[str, ...], gold: int, language: str) -> Item:
    """A story of XStoryCloze with its two endings."""
    return Item(
        id=key,
        benchmark="xstorycloze",
        language=language,
        context=story,
        options=endings,
        gold=gold,
        answers=(endings[gold],),
    )


# A sentence's end, closing marks included, with the next sentence right behind it. A full stop ends none within a
# number (8.30) or an abbreviation (P.M.).
_SENTENCE_END = re.compile(
    r"""(?: [!?。！？؟।…] | \.(?!\w\.)(?!\d) | (?<=\D)\.(?=\d) )
        ["”’»'」）)]*
        (?= [^\s.!?。！？؟।…"”’»'」）),] )""",
    re.VERBOSE,
)


def _respaced(story: str) -> str:
    """`story` with a space between sentences, as the harness joins them."""
    return _SENTENCE_END.sub(lambda end: f"{end[0]} ", story).strip()


def read_cc_xnli(folder: Folder, language: str, split: str) -> list[Located]:
    """1,000 pairs of XNLI's test split with CC-Tuning's prompts."""
    return _cc_choices(folder, "cc_xnli", "XNLI", "split_sample", "ans_sample", language, ("1", "2", "3"))


def read_cc_xstorycloze(folder: Folder, language: str, split: str) -> list[Located]:
    """All 1,511 stories of XStoryCloze with CC-Tuning's prompts."""
    return _cc_choices(folder, "cc_xstorycloze", "XStoryCloze", "split", "ans", language, ("1", "2"))


def read_cc_mmmlu(folder: Folder, language: str, split: str) -> list[Located]:
    """1,000 questions of MMMLU with CC-Tuning's prompts."""
    return _cc_choices(folder, "cc_mmmlu", "MMMLU", "split_sample", "ans_sample", language, LETTERS)


def read_cc_xlsum(folder: Folder, language: str, split: str) -> list[Located]:
    """100 articles of XL-Sum (Hasan et al., 2021) with CC-Tuning's prompts.

    Each language has articles of its own, so the ids hold the language: line 7 is not one item in all languages.
    """
    return [
        (where, _prompted("cc_xlsum", language, f"{language}/{number}", prompt, answers=(_gold_text(gold, place),)))
        for where, number, prompt, place, gold in _cc_pairs(
            folder, "XLSum", "split_sample", "ans_sample", language, str
        )
    ]


def read_cc_xlsum_english(folder: Folder, language: str, split: str) -> list[Located]:
    """Machine translations of a language's XL-Sum prompts: the languages of XL-Sum are not parallel otherwise."""
    prompts = read_jsonl(folder.find(f"cctuning/XLSum/split_sample_en/{language}.json"), dict)
    return [
        (where, _prompted("cc_xlsum", "en", f"{language}/{number}", text(row, "instruction", where)))
        for number, (where, row) in enumerate(prompts, start=1)
    ]


def _cc_choices(
    folder: Folder, benchmark: str, name: str, split: str, golds: str, language: str, labels: tuple[str, ...]
) -> list[Located]:
    items = []
    for where, number, prompt, place, gold in _cc_pairs(folder, name, split, golds, language, str):
        question, options = _split_options(prompt, labels, where)
        common = dict(question=question, options=options, labels=labels, gold=index_of(gold, labels, place))
        items.append((where, _prompted(benchmark, language, number, prompt, answers=(gold,), **common)))
    return items


def _prompted(benchmark: str, language: str, number: str, prompt: str, **fields: Any) -> Item:
    return Item(id=number, benchmark=benchmark, language=language, prompt=prompt, **fields)


def _cc_pairs(
    folder: Folder, name: str, split: str, golds: str, language: str, kind: type
) -> list[tuple[str, str, str, str, Any]]:
    """CC-Tuning's prompt and gold files, line by line: (prompt's place, line, prompt, gold's place, gold)."""
    prompt_path = folder.find(f"cctuning/{name}/{split}/{language}.json")
    gold_path = folder.find(f"cctuning/{name}/{golds}/{language}.json")
    prompts, answers = read_jsonl(prompt_path, dict), read_jsonl(gold_path, kind)
    if len(prompts) != len(answers):
        problem = f"{len(prompts)} prompts, but {len(answers)} golds in {gold_path}"
        raise DataError(str(prompt_path), "files do not match", problem, "download both again: one may be cut")
    return [
        (where, str(number), text(row, "instruction", where), place, gold)
        for number, ((where, row), (place, gold)) in enumerate(zip(prompts, answers, strict=True), start=1)
    ]


def _split_options(prompt: str, labels: tuple[str, ...], where: str) -> tuple[str, tuple[str, ...]]:
    """What precedes the options of a prompt, and the options: paragraphs "(1) ..." or "(A) ..." before the last one."""
    # From the end, because a question may itself speak of "(A)".
    rest, _, _ = prompt.rpartition("\n\n")
    options: list[str] = []
    for label in reversed(labels):
        rest, found, option = rest.rpartition(f"\n({label})")
        if not found or not option.strip():
            problem = f"{prompt[:60]!r} has no option ({label})"
            raise DataError(where, "wrong file", problem, _CHECK)
        options.insert(0, option.strip())
    return rest.strip(), tuple(options)


def index_of(label: str, labels: Sequence[str], where: str) -> int:
    if label not in labels:
        problem = f"{label!r} is none of {', '.join(map(repr, labels))}"
        raise DataError(where, "gold outside the options", problem, _CHECK)
    return labels.index(label)


def _gold(row: Mapping[str, Any], key: str, allowed: range, where: str) -> int:
    """The field `key`, which must be a number in `allowed`."""
    gold = row.get(key)
    if type(gold) is not int or gold not in allowed:
        problem = f"field {key!r} is {gold!r}, expected {' or '.join(map(str, allowed))}"
        raise DataError(where, "bad gold", problem, _CHECK)
    return gold


def _aliases(answers: Any, where: str) -> tuple[str, ...]:
    """Distinct answers, stripped, in their order; at least one, none empty."""
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise DataError(where, "bad gold", f"the answers are {answers!r:.60}, expected texts", _CHECK)
    return tuple(dict.fromkeys(answer.strip() for answer in answers))


def _gold_text(gold: str, where: str) -> str:
    return _aliases([gold], where)[0]
