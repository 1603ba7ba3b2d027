"""The words of zero-shot prompts under the generation protocol, where the benchmark does not bring its own."""

from __future__ import annotations

# (context, question, answer) as the tasks xquad_<language> of lm-evaluation-harness 0.4.13 label them, so that an
# answer generated here and one generated there answer the same prompt. Arabic and Romanian are theirs as they stand.
_PASSAGE_WORDS = {
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
# The harness has no MKQA; these languages of it are not among XQuAD's.
_QUESTION_WORDS = {language: words[1:] for language, words in _PASSAGE_WORDS.items()} | {
    "ja": ("質問", "回答"),
    "ko": ("질문", "답변"),
    "pt": ("Pergunta", "Resposta"),
}
# (instruction, context, question, answer) for XQuAD in the layout of CC-Tuning's prompts; the wording is ours.
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
    """The prompt of the harness's tasks xquad_<language>; with "en", of its tasks mlqa_* in every language."""
    words = _PASSAGE_WORDS[language]
    return f"{words[0]}: {context}\n\n{words[1]}: {question}\n\n{words[2]}:"


def question_prompt(question: str, language: str) -> str:
    """The same without a passage, for MKQA."""
    words = _QUESTION_WORDS[language]
    return f"{words[0]}: {question}\n\n{words[1]}:"


def instructed_prompt(context: str, question: str, language: str) -> str:
    """XQuAD's question in the layout that CC-Tuning (arXiv 2506.00875) gives all its prompts."""
    instruction, *words = _INSTRUCTED[language]
    return f"{instruction}\n\n{words[0]}{context}\n{words[1]}{question}\n\n{words[2]}"
