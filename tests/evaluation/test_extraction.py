"""What an answer chooses: labels in every script, texts, frames in each language, ambiguity; the real prompts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune.errors import PivotuneError
from pivotune.evaluation.extraction import Choice, extract_choice

# language: three options and how answers that name the second one are framed there
QUESTIONS: dict[str, tuple[list[str], list[str]]] = {
    "ar": (["صحيح", "ربما", "خطأ"], ["الإجابة: ٢", "الجواب هو (٢)", "إجابتي هي: ربما", "الخيار ٢", "٢ ربما"]),
    "bg": (["вярно", "може би", "невярно"], ["2) може би", "може би."]),
    "bn": (["সত্য", "হয়তো", "মিথ্যা"], ["উত্তর: ২", "উত্তর হলো (২) হয়তো", "২। হয়তো"]),
    "de": (
        ["Wahr", "Vielleicht", "Falsch"],
        ["Antwort: 2", "Die Antwort ist (2).", "Option 2", "Es ist vielleicht so."],
    ),
    "el": (["Σωστό", "Ίσως", "Λάθος"], ["Απάντηση: 2", "Η απάντηση είναι 2", "Η απάντησή μου: Ίσως."]),
    "en": (
        ["True", "Perhaps", "False"],
        ["The answer is 2", "Answer: (2) Perhaps", "I choose 2.", "**2**", "2. Perhaps"],
    ),
    "es": (["Cierto", "Quizás", "Falso"], ["Respuesta: 2", "La respuesta es la opción 2", "2) Quizás", "QUIZÁS"]),
    "eu": (["Egia", "Agian", "Gezurra"], ["Erantzuna: 2", "(2) Agian", "Erantzun zuzena 2 da"]),
    "fr": (["Vrai", "Peut-être", "Faux"], ["La réponse est 2", "Réponse : 2", "« Peut-être »"]),
    "hi": (["सही", "शायद", "गलत"], ["उत्तर: २", "मेरा उत्तर (२) है", "विकल्प 2 सही है", "२. शायद"]),
    "id": (["Benar", "Mungkin", "Salah"], ["Jawaban: 2", "Jawabannya adalah 2", "Pilihan 2", "mungkin"]),
    "it": (["Vero", "Forse", "Falso"], ["La risposta è 2", "Risposta: forse"]),
    "ja": (
        ["正しい", "おそらく", "誤り"],
        ["答えは2です", "答え：２", "正解は②", "選択肢2", "2番です", "おそらくです"],
    ),
    "ko": (["맞다", "아마도", "틀리다"], ["정답은 2입니다", "답: (2)", "2번", "정답: 아마도입니다"]),
    "pt": (["Certo", "Talvez", "Errado"], ["Resposta: 2", "A resposta é a opção 2", "talvez"]),
    "ru": (["Верно", "Возможно", "Неверно"], ["Ответ: 2", "Мой ответ — 2", "Вариант 2", "возможно,"]),
    "sw": (["Kweli", "Labda", "Uongo"], ["Jibu: 2", "Jibu langu ni 2", "Chaguo la 2", "Jibu ni labda"]),
    "ta": (["சரி", "ஒருவேளை", "தவறு"], ["பதில்: 2", "(௨)"]),
    "te": (["నిజం", "బహుశా", "అబద్ధం"], ["సమాధానం: ౨", "ఎంపిక 2", "(2) బహుశా"]),
    "th": (["จริง", "อาจจะ", "เท็จ"], ["คำตอบ: ๒", "คำตอบคือ 2", "ข้อ 2", "คำตอบคืออาจจะ"]),
    "tr": (["Doğru", "Belki", "Yanlış"], ["Cevap: 2", "Cevabım 2 olacaktır", "2 Belki", "BELKİ"]),
    "ur": (["درست", "شاید", "غلط"], ["جواب: ۲", "(۲) شاید", "میرا جواب شاید ہے"]),
    "vi": (["Đúng", "Có lẽ", "Sai"], ["Câu trả lời là 2", "Đáp án: (2)", "Tôi chọn 2", "có lẽ"]),
    "yo": (["Òótọ́", "Bóyá", "Irọ́"], ["Ìdáhùn: 2", "Idahun mi ni 2", "bóyá"]),
    "zh": (["正确", "也许", "错误"], ["答案是2", "答案：（２）也许", "选项二", "我选择第二个", "②", "也许。"]),
}
EVERYWHERE = ["2", "(2)", "２", "2.", " 2 \n\nnext question (1)", "[2]", "【2】", "❷", "⑵", "٢", "۲", "२", "২", "๒"]


@pytest.mark.parametrize("language", QUESTIONS)
def test_each_language(language: str) -> None:
    options, frames = QUESTIONS[language]
    for answer in [*frames, *EVERYWHERE, options[1], f"(2) {options[1]}", f"{options[1]}.\n\n{options[0]}"]:
        assert extract_choice(answer, options, language=language).index == 1, (language, answer)
    for answer in (f"{options[0]} {options[2]}", "(1) (3)", f"(1) {options[2]}", "1/3"):
        assert extract_choice(answer, options, language=language).ambiguous, (language, answer)
    listed = "\n".join(f"({number}) {option}" for number, option in enumerate(options, start=1))
    for answer in (listed, listed.replace("\n", " ")):
        assert extract_choice(answer, options, language=language) == Choice(None, "label", ambiguous=True)
    for answer in ("", "\n", "?!", "4", "(7)", "12", "2.5"):
        assert extract_choice(answer, options, language=language) == Choice(None, "none"), (language, answer)


CITIES = ["Rome", "Paris", "New York", "York"]


@pytest.mark.parametrize(
    ("answer", "index", "how"),
    [
        ("B", 1, "label"),
        ("b", 1, "label"),
        ("Ｂ", 1, "label"),
        ("Ⓑ", 1, "label"),
        ("(b) Paris", 1, "label"),
        ("B.", 1, "label"),
        ("B: because of the river", 1, "label"),
        ("B because of the river", 1, "label"),
        ("**B**", 1, "label"),
        ("The correct answer is B.", 1, "label"),
        ("Answer: Paris", 1, "text"),
        ("I would go for B", 1, "label"),
        ("It is Paris, of course.", 1, "text"),
        ("A", 0, "label"),
        ("The answer is A", 0, "label"),
        ("(A) is right", 0, "label"),
        ("A Rome", 0, "label"),
        ("New York", 2, "text"),  # and not York as well
        ("It must be York.", 3, "text"),
        ("Let me see.\nD", 3, "label"),
        ("\n\nD) York", 3, "label"),
        ("(B) Paris. Rome (A) is far away", None, "label"),
        ("(B) Paris, since Rome is far away", 1, "label"),  # a label with its text settles it
        ("New Yor", 2, "cut text"),
        ("A city in France", None, "none"),  # "A" is a word here
        ("The C-section", None, "none"),
        ("a", 0, "label"),
        ("A or B", None, "label"),
        ("A, B and C", None, "label"),
        ("Both A and C", None, "label"),
        ("The answer is not B but C.", None, "label"),
        ("The answer is B, for it has C-shaped bridges", 1, "label"),
        ("Either Rome or Paris", None, "text"),
        ("(B) York", None, "label"),
        ("The answer is A or D", None, "label"),
        ("2", None, "none"),  # the prompt offers letters
    ],
)
def test_letters(answer: str, index: int | None, how: str) -> None:
    choice = extract_choice(answer, CITIES, "ABCD", "en")
    assert choice == Choice(index, how, ambiguous=index is None and how != "none"), answer


@pytest.mark.parametrize(
    ("language", "answers"),
    {
        "ar": ["ب", "(ب)", "ب.", "ب) باريس", "الإجابة: ب", "الإجابة هي ب", "B لأن باريس"],
        "bn": ["খ", "(খ)", "উত্তর: খ"],
        "el": ["Β", "Απάντηση: Β"],
        "es": ["La respuesta correcta es la B", "Sería la opción B.", "Después de leerlo, elijo la B", "B. Día"],
        "hi": ["ख", "(ख)", "उत्तर: ख", "उत्तर ख है"],
        "id": ["Jawaban yang benar adalah B.", "Jawabannya B", "Pilihan B", "Saya memilih B"],
        "ja": ["イ", "答え：イ", "正解はBです"],
        "ko": ["나", "(나)", "정답: 나", "정답은 B입니다", "B가 정답"],
        "pt": ["A resposta correta é a B", "A alternativa B", "Água: a opção B", "Letra B"],
        "ru": ["Б", "(Б)", "Ответ: Б"],
        "sw": ["Jibu sahihi ni B.", "Jibu langu ni chaguo la B", "Chaguo B"],
        "th": ["ข", "(ข)", "คำตอบ: ข"],
        "ur": ["ب", "جواب: ب"],
        "yo": ["Ìdáhùn mi ni B", "Aṣayan B", "Idahun rẹ yoo jẹ B."],
        "zh": ["乙", "（Ｂ）", "选B", "答案B", "答案是B。", "B是正确的"],
    }.items(),
)
def test_letters_in_each_language(language: str, answers: list[str]) -> None:
    for answer in answers:
        assert extract_choice(answer, ["w1", "w2", "w3", "w4"], "ABCD", language).index == 1, (language, answer)


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("es", "Dímeros de timina"),  # "D" and a letter that is no ASCII
        ("es", "Cómo no, amigo"),
        ("yo", "Bóyá ni"),
        ("yo", "Idahun: A ò mọ̀"),
        ("vi", "Đáp án: Câu này khó"),
        ("en", "The answer is 37 °C"),
        ("ar", "الإجابة هي يتم نقل المعلومات التحفيزية بواسطة الأعصاب"),  # the 40th character is the ب of a word
    ],
)
def test_words_that_begin_like_a_letter_are_no_label(language: str, answer: str) -> None:
    assert extract_choice(answer, ["w1", "w2", "w3", "w4"], "ABCD", language) == Choice(None, "none")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("那是一只蝙蝠", None),  # a numeral inside of a sentence
        ("答案是他们在一起", None),
        ("答案是其中之一", None),
        ("选择一个", None),
        ("答案是二", 1),
        ("选项二是正确的", 1),
        ("我选择第二个选项", 1),
        ("应该选2，因为前提如此", 1),
        ("二、", 1),
    ],
)
def test_chinese_numerals(answer: str, index: int | None) -> None:
    assert extract_choice(answer, ["甲方", "乙方", "丙方"], language="zh").index == index


def test_two_chinese_numerals_are_ambiguous() -> None:
    assert extract_choice("答案是一或二", ["甲方", "乙方", "丙方"], language="zh").ambiguous


def test_labels_inside_the_text_of_an_option_are_not_chosen() -> None:
    options = ["hepatitis C", "both A and C", "neither", "a breach of clause (b)"]
    for index, option in enumerate(options):
        for answer in (option, f"The answer is {option}", f"Answer: {option}.", f"I think it is {option}."):
            assert extract_choice(answer, options, "ABCD").index == index, answer
    assert extract_choice("The answer is C", options, "ABCD").index == 2
    assert extract_choice("The answer is (A) hepatitis C", options, "ABCD").index == 0
    pets = ["She had 2 dogs.", "She had 1 cat."]
    assert extract_choice("The answer is she had 2 dogs", pets) == Choice(0, "text")


@pytest.mark.parametrize("answer", ["ب", "(ب)", "ب) باريس", "الإجابة: ب", "الإجابة هي ب", "باريس"])
def test_labels_in_the_script_of_the_prompt(answer: str) -> None:
    options = ["روما", "باريس", "لندن", "برلين"]
    assert extract_choice(answer, options, ["أ", "ب", "ج", "د"], "ar").index == 1
    assert extract_choice("أ أو ب", options, ["أ", "ب", "ج", "د"], "ar").ambiguous
    assert extract_choice("B", options, ["أ", "ب", "ج", "د"], "ar") == Choice(None, "none")


def test_the_russian_letter_that_looks_like_b_is_ambiguous() -> None:
    assert extract_choice("В", CITIES, "ABCD", "ru") == Choice(None, "label", ambiguous=True)
    assert extract_choice("Вариант ответа неясен", CITIES, "ABCD", "ru") == Choice(None, "none")


def test_numbers_as_options() -> None:
    options = ["0", "4", "-4", "16"]
    expected = {"4": 1, "-4": 2, "16": 3, "B": 1, "(C) -4": 2, "C. -4": 2, "The answer is 16.": 3, "2 + 2 = 4": 1}
    for answer, index in expected.items():
        assert extract_choice(answer, options, "ABCD").index == index, answer
    assert extract_choice("4 or 16", options, "ABCD").ambiguous
    assert extract_choice("40", options, "ABCD") == Choice(None, "none")


def test_an_option_that_begins_with_a_number_is_no_label() -> None:
    options = ["He left.", "2 days later he came back.", "1 day later he left again."]
    assert extract_choice("1 day later he left again.", options).index == 2
    assert extract_choice("1 day later he left again. Then", options).index == 2
    assert extract_choice("2 days later he came", options).index == 1


def test_cut_off_text() -> None:
    options = ["In the end she watched all of them.", "In the end she hated the whole series."]
    assert extract_choice("In the end she watched all", options) == Choice(0, "cut text")
    assert extract_choice("In the end she", options) == Choice(None, "none")


def test_equal_options_are_ambiguous_by_text_and_clear_by_label() -> None:
    assert extract_choice("same", ["same", "same", "other"]) == Choice(None, "text", ambiguous=True)
    assert extract_choice("(2) same", ["same", "same", "other"]).index == 1


def test_invisible_characters_and_tatweel_do_not_matter() -> None:
    options = ["نعم", "لا"]
    assert extract_choice("\u200f(\u0661) نعـــم\u200f", options, language="ar") == Choice(0, "label")
    assert extract_choice("نعـــم", options, language="ar") == Choice(0, "text")


def test_what_is_asked_wrongly() -> None:
    with pytest.raises(PivotuneError, match="options: got 1; give at least two"):
        extract_choice("x", ["a"])
    with pytest.raises(PivotuneError, match="one distinct label for each"):
        extract_choice("x", ["a", "b"], ["1", "1"])
    with pytest.raises(PivotuneError, match="one distinct label for each"):
        extract_choice("x", ["a", "b"], ["1", " "])


def test_ambiguous_answers_choose_nothing_and_say_so() -> None:
    answers = ["1", "1 or 2", "I do not know", "2", "3"]
    choices = [extract_choice(answer, ["x1", "x2", "x3"]) for answer in answers]
    assert [(one.index, one.ambiguous) for one in choices] == [
        (0, False),
        (None, True),
        (None, False),
        (1, False),
        (2, False),
    ]


@given(
    st.text("12AaB(). \nYesNo٢、or-", max_size=20),
    st.lists(st.text("YesNo12 -.", min_size=1, max_size=6), min_size=2, max_size=4),
    st.sampled_from(sorted(QUESTIONS)),
)
def test_any_text_gives_an_option_or_a_reason(answer: str, options: list[str], language: str) -> None:
    choice = extract_choice(answer, options, language=language)
    if choice.index is None:
        assert choice.ambiguous == (choice.how != "none")
    else:
        assert 0 <= choice.index < len(options)
        assert not choice.ambiguous
        assert choice.how in ("label", "text", "cut text")


def _options(prompt: str, labels: str) -> list[str]:
    starts = [prompt.rindex(f"\n({label})") for label in labels]
    ends = [*starts[1:], prompt.rindex("\n\n")]
    return [prompt[start:end].strip()[3:].strip() for start, end in zip(starts, ends, strict=True)]


ANSWER_IS = {
    **{"ar": "الإجابة هي", "bn": "সঠিক উত্তর", "el": "Η απάντηση είναι", "en": "The answer is", "es": "La respuesta es"},
    **{"eu": "Erantzun zuzena:", "hi": "सही उत्तर", "id": "Jawabannya adalah", "ko": "정답은", "pt": "A resposta é"},
    **{"ru": "Правильный ответ —", "sw": "Jibu ni", "te": "సమాధానం", "th": "คำตอบคือ", "tr": "Doğru cevap"},
    **{"ur": "صحیح جواب", "yo": "Ìdáhùn ni", "zh": "答案是"},
}


@pytest.mark.parametrize(("benchmark", "labels"), [("XNLI", "123"), ("XStoryCloze", "12"), ("MMMLU", "ABCD")])
def test_the_released_prompts(benchmark: str, labels: str, shared_data: Path) -> None:
    """Every gold is found by its label, its text, both, and its text behind "the answer is", in ten languages."""
    folder = shared_data / "bench/cctuning" / benchmark
    prompts = sorted(next(folder.glob("split*")).glob("*.json"))
    assert len(prompts) >= 10
    missed: Counter[str] = Counter()
    for path in prompts:
        golds = (next(folder.glob("ans*")) / path.name).read_text(encoding="utf-8").splitlines()
        seen: set[tuple[str, ...]] = set()
        for line, gold in list(zip(path.read_text(encoding="utf-8").splitlines(), golds, strict=True))[:200]:
            options = _options(json.loads(line)["instruction"], labels)
            label = json.loads(gold)
            if len({re.sub(r"\W", "", option.casefold()) for option in options}) < len(options):
                continue  # equal but for signs: only the label can tell
            if (*options, label) in seen:
                continue
            seen.add((*options, label))
            index = labels.index(label)
            for answer in (label, f"({label})", f"{label}. {options[index]}", f"({label}) {options[index]}"):
                assert extract_choice(answer, options, labels, path.stem).index == index, (path.stem, answer, options)
            if extract_choice(options[index], options, labels, path.stem).index != index:
                missed[options[index]] += 1
            if len(options[index]) > 2 and options[index].strip(".") not in labels:
                answer = f"{ANSWER_IS[path.stem]} {options[index]}"
                assert extract_choice(answer, options, labels, path.stem).index == index, (path.stem, answer, options)
            other = (index + 1) % len(labels)
            for answer in (f"({label}) ({labels[other]})", f"({label}) {options[other]}"):
                if len(options[other]) > 1:
                    assert extract_choice(answer, options, labels, path.stem).index is None, (path.stem, answer)
            both = extract_choice(f"({labels[0]}) {options[0]}\n({labels[1]}) {options[1]}", options, labels, path.stem)
            assert both.ambiguous, (path.stem, options)
    # The text of one option may be the label of another ("C").
    assert all(text.strip(".") in labels for text in missed), missed
