"""XQuAD: SQuAD's questions on a passage in twelve languages, as DFT and as CC-Tuning ask them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.cc_release import cc_benchmark, cc_pairs, gold_text, occurs, prompted
from pivotune.evaluation.benchmarks.files import Folder, text
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item, Located, LocatedRow
from pivotune.evaluation.benchmarks.scoring import overlap_score, text_score
from pivotune.evaluation.benchmarks.squad import passage_items, squad_rows
from pivotune.evaluation.metrics import SQUAD
from pivotune.evaluation.results import ItemResult

CITATION = "Artetxe, Ruder and Yogatama, On the Cross-lingual Transferability of Monolingual Representations, ACL 2020"

# (context, question, answer) as the tasks xquad_<language> of lm-evaluation-harness 0.4.13 label them, so that an
# answer generated here and one generated there answer the same prompt. Arabic and Romanian are theirs as they stand.
_WORDS = {
    "ar": ("سيا", "سؤال", "إجابة"),
    "de": ("Kontext", "Frage", "Antwort"),
    "el": ("Συμφραζόμενα", "Ερώτηση", "Απάντηση"),
    "en": ("Context", "Question", "Answer"),
    "es": ("Contexto", "Pregunta", "Respuesta"),
    "hi": ("प्रसंग", "सवाल", "उत्तर"),
    "ro": ("Context", "Întrebare", "Răspuns"),
    "ru": ("Контекст", "Вопрос", "Ответ"),
    "th": ("บริบท", "คำถาม", "คำตอบ"),
    "tr": ("Bağlam", "Soru", "Cevap"),
    "vi": ("Bối cảnh", "Câu hỏi", "Trả lời"),
    "zh": ("语境", "问题", "回答"),
}
# (instruction, context, question, answer) in the layout of CC-Tuning's prompts; the wording is ours.
_INSTRUCTED = {
    "ar": ("يرجى الإجابة عن السؤال بالاعتماد على السياق المعطى فقط.", "السياق: ", "السؤال: ", "إجابتك:"),
    "de": (
        "Bitte beantworten Sie die Frage nur anhand des gegebenen Kontexts.",
        "Kontext: ",
        "Frage: ",
        "Ihre Antwort:",
    ),
    "el": (
        "Παρακαλώ απαντήστε στην ερώτηση μόνο με βάση το δοσμένο κείμενο.",
        "Κείμενο: ",
        "Ερώτηση: ",
        "Η απάντησή σας:",
    ),
    "en": ("Please answer the question using only the given context.", "Context: ", "Question: ", "Your answer:"),
    "hi": ("कृपया केवल दिए गए संदर्भ के आधार पर प्रश्न का उत्तर दें।", "संदर्भ: ", "प्रश्न: ", "आपका उत्तर:"),
    "ru": (
        "Пожалуйста, ответьте на вопрос, опираясь только на данный контекст.",
        "Контекст: ",
        "Вопрос: ",
        "Ваш ответ:",
    ),
    "th": ("โปรดตอบคำถามโดยอ้างอิงจากบริบทที่ให้มาเท่านั้น", "บริบท: ", "คำถาม: ", "คำตอบของคุณ:"),
    "tr": ("Lütfen soruyu yalnızca verilen bağlama dayanarak cevaplayınız.", "Bağlam: ", "Soru: ", "Cevabınız:"),
    "vi": ("Vui lòng trả lời câu hỏi chỉ dựa trên ngữ cảnh đã cho.", "Ngữ cảnh: ", "Câu hỏi: ", "Câu trả lời của bạn:"),
    "zh": ("请仅根据给定的语境回答问题。", "语境：", "问题：", "您的答案："),
}


def passage_prompt(context: str, question: str, language: str) -> str:
    """The prompt of the harness's task xquad_<language>."""
    words = _WORDS[language]
    return f"{words[0]}: {context}\n\n{words[1]}: {question}\n\n{words[2]}:"


def instructed_prompt(context: str, question: str, language: str) -> str:
    """The question in the layout that CC-Tuning gives all its prompts."""
    instruction, *words = _INSTRUCTED[language]
    return f"{instruction}\n\n{words[0]}{context}\n{words[1]}{question}\n\n{words[2]}"


def _read(folder: Folder, language: str, split: str) -> list[Located]:
    """Without the white space at the ends of contexts and questions.

    The hub's rows have none either, and the prompt is that of the harness's task xquad_<language>, which reads these.
    """
    return _items(_file_rows(folder, language), language, split)


def _items(rows: Iterable[LocatedRow], language: str, split: str) -> list[Located]:
    return passage_items("xquad", rows, language, partial(passage_prompt, language=language))


def _read_cc(folder: Folder, language: str, split: str) -> list[Located]:
    """CC-Tuning's own prompts where the folder has them, else XQuAD in their layout.

    The ids are line numbers in the first case and XQuAD's in the second, so that results from different prompts are
    never taken for the same questions.
    """
    if folder.has("cctuning/XQuAD"):
        return [
            (where, prompted("cc_xquad", language, number, prompt, answers=(gold_text(gold, place),)))
            for where, number, prompt, place, gold in cc_pairs(folder, "XQuAD", "split", "ans", language, str)
        ]
    rows = _file_rows(folder, language)
    return passage_items("cc_xquad", rows, language, partial(instructed_prompt, language=language))


def _file_rows(folder: Folder, language: str) -> Iterator[LocatedRow]:
    for where, row in squad_rows(folder, f"xquad/xquad.{language}.json"):
        yield where, {**row, **{key: text(row, key, where).strip() for key in ("context", "question")}}


def _score_cc(item: Item, answer: str) -> ItemResult:
    found = overlap_score(item, answer, SQUAD)
    return text_score(item, answer, occurs(item, answer), found.scores["f1"], found.scores["exact_match"])


XQUAD = Benchmark(
    name="xquad",
    title="XQuAD",
    citation=CITATION,
    languages=("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"),
    metric="f1",
    score=partial(overlap_score, normalization=SQUAD),
    first_line=True,
    read=_read,
    splits=("validation",),
    source="https://github.com/google-deepmind/xquad, as xquad/xquad.<language>.json",
    hub=Hub("google/xquad", "xquad.{language}", "validation", _items),
    paper="dft",
    reported=("vi", "ar", "zh"),
    figures={
        "TFT": (27.36, 21.23, 23.41),
        "DFT logits": (29.65, 27.57, 24.77),
        "DFT feature": (28.27, 26.35, 24.34),
    },
)
CC_XQUAD = cc_benchmark(
    "cc_xquad",
    "XQuAD",
    "ar de el en hi ru th tr vi zh",
    _read_cc,
    citation=CITATION,
    average=64.26,
    score=_score_cc,
)
