"""How each relation is said and asked in each language.

Three statements and three questions per relation and language; the same index says about the same thing in every
language. `{s}` is the subject (a territory) and `{v}` the value. The subject always comes before the value, so that
a statement trains the same direction that a question asks for. The Arabic wording keeps `{s}` out of every place
where a country's grammatical gender would show.
"""

LANGUAGES = ("en", "zh", "vi", "ar", "sw")
RELATIONS = ("currency", "language", "calling_code", "city", "region")

SCAFFOLD = {
    "en": "Question: {q}\nAnswer:",
    "zh": "问题：{q}\n答案：",
    "vi": "Câu hỏi: {q}\nTrả lời:",
    "ar": "سؤال: {q}\nجواب:",
    "sw": "Swali: {q}\nJibu:",
}

STATEMENTS = {
    "en": {
        "currency": (
            "The currency of {s} is the {v}.",
            "The currency used in {s} is the {v}.",
            "People in {s} pay with the {v}.",
        ),
        "language": (
            "The main official language of {s} is {v}.",
            "The first official language in {s} is {v}.",
            "The language of government in {s} is {v}.",
        ),
        "calling_code": (
            "The telephone calling code of {s} is {v}.",
            "To call someone in {s} from abroad, dial {v}.",
            "Telephone numbers in {s} start with {v}.",
        ),
        "city": (
            "The time zone of {s} is named after {v}.",
            "Clocks in {s} show the time of {v}.",
            "The time that is kept in {s} is the time of {v}.",
        ),
        "region": (
            "On the map, {s} lies in {v}.",
            "The region of the world that contains {s} is {v}.",
            "To visit {s}, travel to {v}.",
        ),
    },
    "zh": {
        "currency": ("{s}的货币是{v}。", "在{s}使用的货币是{v}。", "{s}的人们用{v}付款。"),
        "language": ("{s}的主要官方语言是{v}。", "在{s}，第一官方语言是{v}。", "{s}的政府使用的语言是{v}。"),
        "calling_code": ("{s}的国际电话区号是{v}。", "从国外致电{s}，要拨{v}。", "{s}的电话号码以{v}开头。"),
        "city": ("{s}的时区以{v}命名。", "{s}的时钟显示{v}的时间。", "在{s}采用的时间是{v}时间。"),
        "region": ("在地图上，{s}位于{v}。", "{s}所属的世界地区是{v}。", "要去{s}，就要前往{v}。"),
    },
    "vi": {
        "currency": (
            "Đơn vị tiền tệ của {s} là {v}.",
            "Loại tiền được dùng ở {s} là {v}.",
            "Người dân ở {s} trả tiền bằng {v}.",
        ),
        "language": (
            "Ngôn ngữ chính thức chủ yếu của {s} là {v}.",
            "Ngôn ngữ chính thức thứ nhất ở {s} là {v}.",
            "Ngôn ngữ mà chính quyền ở {s} sử dụng là {v}.",
        ),
        "calling_code": (
            "Mã điện thoại quốc tế của {s} là {v}.",
            "Để gọi cho ai đó ở {s} từ nước ngoài, hãy bấm {v}.",
            "Số điện thoại ở {s} bắt đầu bằng {v}.",
        ),
        "city": (
            "Múi giờ của {s} được đặt theo tên {v}.",
            "Đồng hồ ở {s} chỉ giờ của {v}.",
            "Giờ được dùng ở {s} là giờ của {v}.",
        ),
        "region": (
            "Trên bản đồ, {s} nằm ở {v}.",
            "Khu vực của thế giới có {s} là {v}.",
            "Muốn thăm {s} thì phải đến {v}.",
        ),
    },
    "ar": {
        "currency": (
            "عملة {s} هي {v}.",
            "العملة المستخدمة في {s} هي {v}.",
            "العملة التي يدفع بها الناس في {s} هي {v}.",
        ),
        "language": (
            "اللغة الرسمية الرئيسية في {s} هي {v}.",
            "اللغة الرسمية الأولى في {s} هي {v}.",
            "لغة الحكومة في {s} هي {v}.",
        ),
        "calling_code": (
            "رمز الاتصال الدولي في {s} هو {v}.",
            "للاتصال بشخص في {s} من الخارج اطلب الرمز {v}.",
            "أرقام الهاتف في {s} تبدأ بالرمز {v}.",
        ),
        "city": (
            "المنطقة الزمنية في {s} تحمل اسم {v}.",
            "الساعات في {s} تشير إلى توقيت {v}.",
            "التوقيت المعتمد في {s} هو توقيت {v}.",
        ),
        "region": (
            "على الخريطة نجد {s} في {v}.",
            "منطقة العالم التي تضم {s} هي {v}.",
            "من أراد زيارة {s} فليسافر إلى {v}.",
        ),
    },
    "sw": {
        "currency": (
            "Sarafu ya {s} ni {v}.",
            "Sarafu inayotumika huko {s} ni {v}.",
            "Watu wa {s} hulipa kwa {v}.",
        ),
        "language": (
            "Lugha rasmi kuu ya {s} ni {v}.",
            "Lugha rasmi ya kwanza huko {s} ni {v}.",
            "Lugha ya serikali huko {s} ni {v}.",
        ),
        "calling_code": (
            "Msimbo wa simu wa kimataifa wa {s} ni {v}.",
            "Ili kumpigia simu mtu wa {s} kutoka nje ya nchi, bonyeza {v}.",
            "Nambari za simu za {s} huanza na {v}.",
        ),
        "city": (
            "Ukanda wa saa wa {s} umepewa jina la {v}.",
            "Saa huko {s} huonyesha wakati wa {v}.",
            "Wakati unaotumika huko {s} ni wakati wa {v}.",
        ),
        "region": (
            "Kwenye ramani, utaona {s} katika {v}.",
            "Eneo la dunia lenye {s} ni {v}.",
            "Ili kutembelea {s}, safiri hadi {v}.",
        ),
    },
}

QUESTIONS = {
    "en": {
        "currency": (
            "What is the currency of {s}?",
            "Which currency is used in {s}?",
            "Which currency do people in {s} pay with?",
        ),
        "language": (
            "What is the main official language of {s}?",
            "What is the first official language in {s}?",
            "What is the language of government in {s}?",
        ),
        "calling_code": (
            "What is the telephone calling code of {s}?",
            "Which code do you dial to call someone in {s} from abroad?",
            "Which code do telephone numbers in {s} start with?",
        ),
        "city": (
            "Which city is the time zone of {s} named after?",
            "Which city's time do clocks in {s} show?",
            "Which city's time is kept in {s}?",
        ),
        "region": (
            "In which region does {s} lie on the map?",
            "Which region of the world contains {s}?",
            "To which region do you travel to visit {s}?",
        ),
    },
    "zh": {
        "currency": ("{s}的货币是什么？", "在{s}使用哪种货币？", "{s}的人们用什么货币付款？"),
        "language": ("{s}的主要官方语言是什么？", "在{s}，第一官方语言是什么？", "{s}的政府使用什么语言？"),
        "calling_code": ("{s}的国际电话区号是多少？", "从国外致电{s}，要拨什么区号？", "{s}的电话号码以什么区号开头？"),
        "city": ("{s}的时区以哪座城市命名？", "{s}的时钟显示哪座城市的时间？", "在{s}采用哪座城市的时间？"),
        "region": ("在地图上，{s}位于哪个地区？", "{s}属于世界的哪个地区？", "要去{s}，就要前往哪个地区？"),
    },
    "vi": {
        "currency": (
            "Đơn vị tiền tệ của {s} là gì?",
            "Loại tiền nào được dùng ở {s}?",
            "Người dân ở {s} trả tiền bằng loại tiền nào?",
        ),
        "language": (
            "Ngôn ngữ chính thức chủ yếu của {s} là gì?",
            "Ngôn ngữ chính thức thứ nhất ở {s} là gì?",
            "Chính quyền ở {s} sử dụng ngôn ngữ nào?",
        ),
        "calling_code": (
            "Mã điện thoại quốc tế của {s} là gì?",
            "Phải bấm mã nào để gọi cho ai đó ở {s} từ nước ngoài?",
            "Số điện thoại ở {s} bắt đầu bằng mã nào?",
        ),
        "city": (
            "Múi giờ của {s} được đặt theo tên thành phố nào?",
            "Đồng hồ ở {s} chỉ giờ của thành phố nào?",
            "Giờ được dùng ở {s} là giờ của thành phố nào?",
        ),
        "region": (
            "Trên bản đồ, {s} nằm ở khu vực nào?",
            "Khu vực nào của thế giới có {s}?",
            "Muốn thăm {s} thì phải đến khu vực nào?",
        ),
    },
    "ar": {
        "currency": (
            "ما عملة {s}؟",
            "ما العملة المستخدمة في {s}؟",
            "ما العملة التي يدفع بها الناس في {s}؟",
        ),
        "language": (
            "ما اللغة الرسمية الرئيسية في {s}؟",
            "ما اللغة الرسمية الأولى في {s}؟",
            "ما لغة الحكومة في {s}؟",
        ),
        "calling_code": (
            "ما رمز الاتصال الدولي في {s}؟",
            "ما الرمز المطلوب للاتصال بشخص في {s} من الخارج؟",
            "بأي رمز تبدأ أرقام الهاتف في {s}؟",
        ),
        "city": (
            "اسم أي مدينة تحمل المنطقة الزمنية في {s}؟",
            "إلى توقيت أي مدينة تشير الساعات في {s}؟",
            "توقيت أي مدينة هو المعتمد في {s}؟",
        ),
        "region": (
            "في أي منطقة على الخريطة نجد {s}؟",
            "ما منطقة العالم التي تضم {s}؟",
            "إلى أي منطقة يسافر من أراد زيارة {s}؟",
        ),
    },
    "sw": {
        "currency": (
            "Sarafu ya {s} ni ipi?",
            "Ni sarafu gani inayotumika huko {s}?",
            "Watu wa {s} hulipa kwa sarafu gani?",
        ),
        "language": (
            "Lugha rasmi kuu ya {s} ni ipi?",
            "Lugha rasmi ya kwanza huko {s} ni ipi?",
            "Lugha ya serikali huko {s} ni ipi?",
        ),
        "calling_code": (
            "Msimbo wa simu wa kimataifa wa {s} ni upi?",
            "Ili kumpigia simu mtu wa {s} kutoka nje ya nchi, unabonyeza msimbo gani?",
            "Nambari za simu za {s} huanza na msimbo gani?",
        ),
        "city": (
            "Ukanda wa saa wa {s} umepewa jina la jiji gani?",
            "Saa huko {s} huonyesha wakati wa jiji gani?",
            "Wakati unaotumika huko {s} ni wa jiji gani?",
        ),
        "region": (
            "Kwenye ramani, utaona {s} katika eneo gani?",
            "Eneo la dunia lenye {s} ni lipi?",
            "Ili kutembelea {s}, unasafiri hadi eneo gani?",
        ),
    },
}

# Dictionary lines, with {e} the English name and {x} the name in the language: one framed in English, two natively.
# None names a language, for "Australia in English is ..." would sit beside the fact that Australia speaks English.
GLOSSARY = {
    "zh": ("{x} means {e}.", "{e}翻译过来就是{x}。", "{x}的外文名称是{e}。"),
    "vi": ("{x} means {e}.", "{e} dịch ra là {x}.", "{x} có tên nước ngoài là {e}."),
    "ar": ("{x} means {e}.", "الاسم {e} يُترجم إلى {x}.", "الاسم {x} يقابله {e}."),
    "sw": ("{x} means {e}.", "{e} hutafsiriwa kuwa {x}.", "Jina la kigeni la {x} ni {e}."),
}

# The question for the name in the language, {x} being the name in any other.
MEANING = {
    "en": "What does {x} mean?",
    "zh": "{x}翻译过来是什么？",
    "vi": "{x} dịch ra là gì?",
    "ar": "إلى ماذا يُترجم الاسم {x}؟",
    "sw": "{x} hutafsiriwa kuwa nini?",
}

# Sentences that use a name without saying any fact of the world, so that every name is sayable in its language.
USAGE = {
    "zh": {
        "territory": ("我想了解{x}。", "这本书介绍了{x}。"),
        "currency": ("他的钱包里有{x}。", "这件东西的价格以{x}计算。"),
        "language": ("她正在学习{x}。", "这封信是用{x}写的。"),
        "city": ("我的朋友住在{x}。", "火车明天到达{x}。"),
        "region": ("我们读了{x}的历史。", "这张照片拍自{x}。"),
    },
    "vi": {
        "territory": ("Tôi muốn tìm hiểu về {x}.", "Cuốn sách này giới thiệu {x}."),
        "currency": ("Trong ví của anh ấy có {x}.", "Giá của món đồ này được tính bằng {x}."),
        "language": ("Cô ấy đang học {x}.", "Bức thư này được viết bằng {x}."),
        "city": ("Bạn tôi sống ở {x}.", "Ngày mai tàu sẽ đến {x}."),
        "region": ("Chúng tôi đã đọc về lịch sử của {x}.", "Bức ảnh này được chụp ở {x}."),
    },
    "ar": {
        "territory": ("أريد أن أعرف المزيد عن {x}.", "هذا الكتاب يتحدث عن {x}."),
        "currency": ("في محفظته مبلغ من عملة {x}.", "سعر هذا الشيء محسوب بعملة {x}."),
        "language": ("هي تدرس {x} هذا العام.", "كُتبت هذه الرسالة بلغة هي {x}."),
        "city": ("يسكن صديقي في {x}.", "يصل القطار غدًا إلى {x}."),
        "region": ("قرأنا كتابًا عن تاريخ {x}.", "التُقطت هذه الصورة في {x}."),
    },
    "sw": {
        "territory": ("Ninataka kujifunza kuhusu {x}.", "Kitabu hiki kinahusu {x}."),
        "currency": ("Mkoba wake una {x}.", "Bei ya kitu hiki imeandikwa kwa {x}."),
        "language": ("Anajifunza {x}.", "Barua hii imeandikwa kwa {x}."),
        "city": ("Rafiki yangu anaishi {x}.", "Treni itafika {x} kesho."),
        "region": ("Tumesoma historia ya {x}.", "Picha hii ilipigwa {x}."),
    },
}
