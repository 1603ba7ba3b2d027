"""The language of answers: certain cases per language, what stays undetermined, real sentences."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune.errors import PivotuneError
from pivotune.evaluation import adherence as module
from pivotune.evaluation.adherence import LANGUAGES, Adherence, LanguageIdentifier, Verdict, adherence

SENTENCES = {
    "ar": "الطقس جميل اليوم في المدينة",
    "bg": "Днес времето в града е много хубаво",
    "bn": "আজ শহরের আবহাওয়া সুন্দর",
    "de": "Das Wetter ist heute in der Stadt sehr schön",
    "el": "Ο καιρός στην πόλη είναι πολύ καλός σήμερα",
    "en": "The weather in the city is very nice today",
    "es": "El tiempo en la ciudad es muy bueno hoy",
    "et": "Täna on linnas väga ilus ilm",
    "eu": "Gaur oso eguraldi ona dago hirian",
    "fr": "Le temps est très beau en ville aujourd'hui",
    "hi": "आज शहर में मौसम बहुत अच्छा है",
    "ht": "Jodi a tan an bèl anpil nan vil la",
    "id": "Cuaca di kota hari ini sangat bagus",
    "it": "Oggi in città il tempo è molto bello",
    "ja": "今日は町の天気がとても良い",
    "ko": "오늘 도시의 날씨가 아주 좋다",
    "pt": "O tempo na cidade está muito bom hoje",
    "qu": "Kunan p'unchay llaqtapi allin tiempo kachkan",
    "ro": "Vremea în oraș este foarte frumoasă astăzi",
    "ru": "Сегодня в городе очень хорошая погода",
    "sw": "Hali ya hewa mjini ni nzuri sana leo",
    "ta": "இன்று நகரத்தில் வானிலை நன்றாக உள்ளது",
    "te": "ఈరోజు నగరంలో వాతావరణం చాలా బాగుంది",
    "th": "วันนี้อากาศในเมืองดีมาก",
    "tr": "Bugün şehirde hava çok güzel",
    "ur": "آج شہر میں موسم بہت اچھا ہے",
    "vi": "Hôm nay thời tiết trong thành phố rất đẹp",
    "yo": "Ojú ọjọ́ dára gan-an ní ìlú lónìí",
    "zh": "今天城里的天气很好",
}


# "I do not know the answer to this question" and "He was born in the south of the country in 1984" or the like.
FURTHER = {
    "ar": ("لا أعرف الجواب على هذا السؤال", "ولد في عام 1984 في جنوب البلاد"),
    "bg": ("Не знам отговора на този въпрос", "Той е роден през 1984 година в София"),
    "bn": ("আমি এই প্রশ্নের উত্তর জানি না", "তিনি ১৯৮৪ সালে ঢাকায় জন্মগ্রহণ করেন"),
    "de": ("Ich kenne die Antwort auf diese Frage nicht", "Er wurde 1984 in Berlin geboren"),
    "el": ("Δεν ξέρω την απάντηση σε αυτή την ερώτηση", "Γεννήθηκε το 1984 στην πρωτεύουσα"),
    "en": ("I do not know the answer to this question", "He was born in 1984 in London"),
    "es": ("No sé la respuesta a esta pregunta", "Nació en 1984 en el sur del país"),
    "et": ("Ma ei tea sellele küsimusele vastust", "Ta sündis 1984. aastal Tallinnas"),
    "eu": ("Ez dakit galdera honen erantzuna", "1984an jaio zen Bilbon"),
    "fr": ("Je ne connais pas la réponse à cette question", "Il est né en 1984 à Lyon"),
    "hi": ("मुझे इस प्रश्न का उत्तर नहीं पता", "उनका जन्म 1984 में दिल्ली में हुआ था"),
    "ht": ("Mwen pa konnen repons kesyon sa a", "Li te fèt an 1984 nan Pòtoprens"),
    "id": ("Saya tidak tahu jawaban atas pertanyaan ini", "Dia lahir pada tahun 1984 di Jakarta"),
    "it": ("Non conosco la risposta a questa domanda", "È nato nel 1984 nel sud del paese"),
    "ja": ("この質問の答えはわかりません", "彼は1984年に東京で生まれた"),
    "ko": ("나는 이 질문의 답을 모른다", "그는 1984년에 서울에서 태어났다"),
    "pt": ("Eu não sei a resposta a esta pergunta", "Ele nasceu em 1984 em Lisboa"),
    "qu": ("Manam kay tapuypa kutichiyninta yachanichu", "Payqa 1984 watapi Qusqupi paqarisqa"),
    "ro": ("Nu știu răspunsul la această întrebare", "S-a născut în 1984 la București"),
    "ru": ("Я не знаю ответа на этот вопрос", "Он родился в 1984 году в Москве"),
    "sw": ("Sijui jibu la swali hili", "Alizaliwa mwaka 1984 mjini Nairobi"),
    "ta": ("இந்த கேள்விக்கு எனக்கு பதில் தெரியாது", "அவர் 1984 இல் சென்னையில் பிறந்தார்"),
    "te": ("ఈ ప్రశ్నకు సమాధానం నాకు తెలియదు", "అతను 1984లో హైదరాబాద్‌లో జన్మించాడు"),
    "th": ("ฉันไม่รู้คำตอบของคำถามนี้", "เขาเกิดในปี 1984 ที่กรุงเทพ"),
    "tr": ("Bu sorunun cevabını bilmiyorum", "1984 yılında İstanbul'da doğdu"),
    "ur": ("مجھے اس سوال کا جواب معلوم نہیں", "وہ 1984 میں لاہور میں پیدا ہوئے"),
    "vi": ("Tôi không biết câu trả lời cho câu hỏi này", "Ông sinh năm 1984 tại Hà Nội"),
    "yo": ("Mi ò mọ ìdáhùn sí ìbéèrè yìí", "Wọ́n bí i ní ọdún 1984 ní Èkó"),
    "zh": ("我不知道这个问题的答案", "他于1984年出生在北京"),
}
YES_AND_NO = {
    **{"ar": ("نعم", "لا"), "bg": ("да", "не"), "bn": ("হ্যাঁ", "না"), "de": ("ja", "nein"), "el": ("ναι", "όχι")},
    **{"en": ("yes", "no"), "es": ("sí", "no"), "et": ("jah", "ei"), "eu": ("bai", "ez"), "fr": ("oui", "non")},
    **{"hi": ("हाँ", "नहीं"), "ht": ("wi", "non"), "id": ("ya", "tidak"), "it": ("sì", "no"), "ja": ("はい", "いいえ")},
    **{"ko": ("네", "아니요"), "pt": ("sim", "não"), "qu": ("arí", "manam"), "ro": ("da", "nu"), "ru": ("да", "нет")},
    **{"sw": ("ndiyo", "hapana"), "ta": ("ஆம்", "இல்லை"), "te": ("అవును", "కాదు"), "th": ("ใช่", "ไม่")},
    **{"tr": ("evet", "hayır"), "ur": ("جی ہاں", "نہیں"), "vi": ("có", "không"), "yo": ("bẹ́ẹ̀ni", "bẹ́ẹ̀ kọ́")},
    **{"zh": ("是", "不是")},
}
# Written as no other of LANGUAGES: even one word of two letters tells.
SCRIPT_OF_THEIR_OWN = ("bn", "hi", "ja", "ko", "ta", "te", "th", "zh")


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier()


def test_every_language_of_the_benchmarks_is_recognised(identifier: LanguageIdentifier) -> None:
    assert sorted(SENTENCES) == sorted(LANGUAGES)
    for language in LANGUAGES:
        for sentence in (SENTENCES[language], *FURTHER[language]):
            assert identifier.identify(sentence) == language
            assert identifier.judge(sentence, language) == Verdict("in language", language)
            for other in LANGUAGES:
                if other != language:
                    expected = Verdict("other", language)
                    assert identifier.judge(sentence, other) == expected, (language, other)


@pytest.mark.parametrize("language", LANGUAGES)
def test_short_answers_are_never_in_another_language(identifier: LanguageIdentifier, language: str) -> None:
    for answer in ("42", "1984", "٤٢", "3.14", "12 %", "(2)", "B.", "Paris", "NBA", "Paul Zerdin"):
        assert identifier.judge(answer, language) == Verdict("undetermined"), answer
    for word in YES_AND_NO[language]:
        for answer in (word, f"{word.capitalize()}."):
            verdict = identifier.judge(answer, language)
            assert verdict.kind != "other", answer
            if language in SCRIPT_OF_THEIR_OWN:
                assert (verdict.kind == "in language") == (len(re.findall(r"[^\W\d_]", word)) > 1), answer


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "en"),
        ("1999", "zh"),
        ("3.5 %", "ar"),
        ("١٩٩٩", "ar"),
        ("(B)", "en"),
        ("x = 2", "ru"),
        ("https://example.org/the/answer/is/here", "zh"),
        ("Paul Zerdin", "zh"),  # names are written so in many languages
        ("Battle of Ia Drang", "vi"),
        ("New York City", "ar"),
        ("Чедвик Боузман", "en"),
        ("NBA", "ko"),
        ("neutral", "zh"),  # single words in Latin letters are
        ("neutral", "de"),
        ("محايد", "ar"),  # Arabic or Urdu
        ("有", "zh"),
        ("東京都", "ja"),  # Japanese or Chinese
    ],
)
def test_what_says_nothing_about_language(identifier: LanguageIdentifier, text: str, language: str) -> None:
    assert identifier.judge(text, language) == Verdict("undetermined")


@pytest.mark.parametrize(
    ("text", "language", "verdict"),
    [
        ("中立", "zh", Verdict("in language", "zh")),
        ("(2) 中立", "zh-Hans", Verdict("in language", "zh")),
        ("중립", "ko", Verdict("in language", "ko")),
        ("เป็นกลาง", "th", Verdict("in language", "th")),
        ("तटस्थ", "hi", Verdict("in language", "hi")),
        ("محايد", "zh", Verdict("other", "Arabic")),  # the wrong script, whichever its language
        ("トム", "ja", Verdict("in language", "ja")),
        ("東京は日本の首都", "zh", Verdict("other", "ja")),
        ("北京是中华人民共和国的首都", "ja", Verdict("other", "zh")),
        ("Paul Zerdin 是获胜者", "zh", Verdict("in language", "zh")),  # the name does not count
        ("I think the answer is 中立", "zh", Verdict("other", "en")),
        ("The winner of the show in 2015 was Paul Zerdin.", "vi", Verdict("other", "en")),
        ("SORRY, I DO NOT KNOW THE ANSWER", "es", Verdict("other", "en")),
    ],
)
def test_script_first(identifier: LanguageIdentifier, text: str, language: str, verdict: Verdict) -> None:
    assert identifier.judge(text, language) == verdict


def test_the_share_leaves_out_what_is_undetermined() -> None:
    answers = [
        SENTENCES["vi"],
        SENTENCES["vi"],
        SENTENCES["en"],
        SENTENCES["zh"],
        SENTENCES["en"],
        "1999",
        "Paul Zerdin",
    ]
    result = adherence(answers, "vi")
    assert result == Adherence("vi", in_language=2, other=3, undetermined=2, found={"en": 2, "zh": 1})
    assert result.share == 2 / 5
    assert adherence(["1999", ""], "vi").share is None
    assert adherence([], "vi") == Adherence("vi", 0, 0, 0)


def test_another_language_than_those_of_the_benchmarks() -> None:
    dutch = "Het weer in de stad is vandaag erg mooi"
    assert adherence([dutch, SENTENCES["de"]], "nl") == Adherence("nl", 1, 1, 0, {"de": 1})
    with pytest.raises(PivotuneError, match=r"language: got 'nl'.*add it to its languages"):
        LanguageIdentifier(("en", "de")).judge(dutch, "nl")
    with pytest.raises(PivotuneError, match=r"languages: got 'xx', which py3langid does not know"):
        LanguageIdentifier(("en", "xx"))


def test_a_higher_confidence_leaves_more_undetermined() -> None:
    text = "la casa de"
    assert LanguageIdentifier(confidence=0.0).identify(text) in ("es", "pt", "it", "ro", None)
    assert LanguageIdentifier(confidence=0.999999).identify(text) is None


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr("importlib.import_module", absent)
    module._load_model.cache_clear()
    with pytest.raises(PivotuneError, match=r"py3langid is not installed.*pip install 'pivotune\[evaluation\]'"):
        LanguageIdentifier()


@given(st.text(max_size=30), st.sampled_from(LANGUAGES))
def test_any_text_gets_a_verdict(text: str, language: str) -> None:
    verdict = module._default_identifier(language).judge(text, language)
    assert verdict.kind in ("in language", "other", "undetermined")
    assert (verdict.found is None) == (verdict.kind == "undetermined")
    assert (verdict.found == language) == (verdict.kind == "in language")


TATOEBA = {
    **{"ara": "ar", "cmn": "zh", "deu": "de", "ell": "el", "fra": "fr", "hin": "hi", "ind": "id"},
    **{"rus": "ru", "spa": "es", "swh": "sw", "tha": "th", "tur": "tr", "vie": "vi"},
}


def test_real_sentences(shared_data: Path, identifier: LanguageIdentifier) -> None:
    folder = shared_data / "parallel/tatoeba"
    for code, language in TATOEBA.items():
        own, english = (
            (folder / f"tatoeba.{code}-eng.{side}").read_text(encoding="utf-8").splitlines() for side in (code, "eng")
        )
        result = adherence(own, language, identifier)
        assert result.share is not None and result.share >= 0.995, result
        assert result.undetermined <= 0.2 * len(own), result  # many a Swahili sentence is one word
        result = adherence(english, language, identifier)
        assert result.share is not None and result.share <= 0.001, result
        assert result.undetermined <= 0.04 * len(english), result


def test_real_summaries(shared_data: Path, identifier: LanguageIdentifier) -> None:
    for path in sorted((shared_data / "bench/cctuning/XLSum/ans_sample").glob("*.json")):
        golds = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert adherence(golds, path.stem, identifier).share == 1, path.stem
