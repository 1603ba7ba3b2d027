"""The words and sentences of the skills, in English, Chinese, Vietnamese, Arabic and Swahili.

A word is known by its English text; its row holds the other languages in the order of LANGUAGES[1:]. A "word" is the
smallest piece that all five languages can exchange for one another, so it may be a phrase: "at the market" is one word
of Swahili. `(m|f)` holds the forms for a man and a woman; only Arabic needs them.

The sentences are chosen so that nothing else inflects. People are what is compared, and Arabic comparatives and
Swahili adjectives of persons have one form. Possession is said with Arabic عند, which leaves the thing in the
nominative, the form without endings; an Arabic hypothesis stands after a colon for the same reason. Things are
plurals or substances, so that English and Chinese need neither article nor classifier. Ages are from 11 to 99,
where Arabic counts in the singular. People have Biblical names, as these have an old form of their own in every
language: a name cannot be copied from English.
"""

from pivotune.lab.templates import LANGUAGES

STOP = {"en": ".", "zh": "。", "vi": ".", "ar": ".", "sw": "."}

Table = dict[str, tuple[str, str, str, str]]

WOMEN: Table = {
    "Mary": ("玛丽", "Maria", "مريم", "Maria"),
    "Sarah": ("萨拉", "Sara", "سارة", "Sara"),
    "Ruth": ("露丝", "Rút", "راعوث", "Ruthu"),
    "Rachel": ("蕾切尔", "Rakhen", "راحيل", "Raheli"),
    "Rebecca": ("丽贝卡", "Rêbêca", "رفقة", "Rebeka"),
    "Eve": ("夏娃", "Eva", "حواء", "Hawa"),
    "Hannah": ("汉娜", "Anna", "حنة", "Anna"),
    "Lydia": ("莉迪亚", "Lyđia", "ليديا", "Lidia"),
    "Esther": ("埃丝特", "Étte", "إستير", "Esta"),
    "Leah": ("利亚", "Lêa", "ليئة", "Lea"),
    "Martha": ("玛莎", "Mácta", "مرتا", "Marta"),
    "Julia": ("朱莉娅", "Giulia", "جوليا", "Yulia"),
}
MEN: Table = {
    "John": ("约翰", "Gioan", "يوحنا", "Yohana"),
    "Peter": ("彼得", "Phêrô", "بطرس", "Petro"),
    "Paul": ("保罗", "Phaolô", "بولس", "Paulo"),
    "Joseph": ("约瑟夫", "Giuse", "يوسف", "Yusufu"),
    "David": ("大卫", "Đavít", "داود", "Daudi"),
    "Daniel": ("丹尼尔", "Đanien", "دانيال", "Danieli"),
    "Simon": ("西蒙", "Simôn", "سمعان", "Simoni"),
    "Moses": ("摩西", "Môsê", "موسى", "Musa"),
    "Noah": ("诺亚", "Nôê", "نوح", "Nuhu"),
    "Luke": ("卢克", "Luca", "لوقا", "Luka"),
    "Adam": ("亚当", "Ađam", "آدم", "Adamu"),
    "Mark": ("马克", "Máccô", "مرقس", "Marko"),
}
PLACES: Table = {
    "at the market": ("在市场", "ở chợ", "في السوق", "sokoni"),
    "at school": ("在学校", "ở trường học", "في المدرسة", "shuleni"),
    "in the garden": ("在花园里", "ở trong vườn", "في الحديقة", "bustanini"),
    "in the hospital": ("在医院", "ở bệnh viện", "في المستشفى", "hospitalini"),
    "in the library": ("在图书馆", "ở thư viện", "في المكتبة", "maktabani"),
    "in the kitchen": ("在厨房", "ở nhà bếp", "في المطبخ", "jikoni"),
    "in the office": ("在办公室", "ở văn phòng", "في المكتب", "ofisini"),
    "at the beach": ("在海滩", "ở bãi biển", "على الشاطئ", "ufukweni"),
    "in the forest": ("在森林里", "ở trong rừng", "في الغابة", "msituni"),
    "at the station": ("在车站", "ở nhà ga", "في المحطة", "kituoni"),
    "in the shop": ("在商店", "ở cửa hàng", "في المتجر", "dukani"),
    "on the farm": ("在农场", "ở nông trại", "في المزرعة", "shambani"),
}
CATEGORIES: Table = {
    "animals": ("动物", "động vật", "حيوانات", "wanyama"),
    "fruit": ("水果", "trái cây", "فواكه", "matunda"),
    "drinks": ("饮料", "đồ uống", "مشروبات", "vinywaji"),
    "clothes": ("衣服", "quần áo", "ملابس", "nguo"),
    "vehicles": ("交通工具", "phương tiện đi lại", "وسائل نقل", "vyombo vya usafiri"),
    "furniture": ("家具", "đồ nội thất", "أثاث", "samani"),
}
THINGS: Table = {
    "dogs": ("狗", "chó", "كلاب", "mbwa"),
    "cats": ("猫", "mèo", "قطط", "paka"),
    "horses": ("马", "ngựa", "خيول", "farasi"),
    "goats": ("山羊", "dê", "ماعز", "mbuzi"),
    "apples": ("苹果", "táo", "تفاح", "matofaa"),
    "oranges": ("橙子", "cam", "برتقال", "machungwa"),
    "bananas": ("香蕉", "chuối", "موز", "ndizi"),
    "grapes": ("葡萄", "nho", "عنب", "zabibu"),
    "milk": ("牛奶", "sữa", "حليب", "maziwa"),
    "tea": ("茶", "trà", "شاي", "chai"),
    "coffee": ("咖啡", "cà phê", "قهوة", "kahawa"),
    "cocoa": ("可可", "ca cao", "كاكاو", "kakao"),
    "shirts": ("衬衫", "áo sơ mi", "قمصان", "mashati"),
    "trousers": ("裤子", "quần dài", "سراويل", "suruali"),
    "coats": ("大衣", "áo khoác", "معاطف", "makoti"),
    "dresses": ("裙子", "váy", "فساتين", "magauni"),
    "cars": ("汽车", "ô tô", "سيارات", "magari"),
    "bicycles": ("自行车", "xe đạp", "دراجات", "baiskeli"),
    "boats": ("船", "thuyền", "قوارب", "mashua"),
    "trucks": ("卡车", "xe tải", "شاحنات", "malori"),
    "chairs": ("椅子", "ghế", "كراسي", "viti"),
    "tables": ("桌子", "bàn", "طاولات", "meza"),
    "cupboards": ("柜子", "tủ", "خزائن", "makabati"),
    "beds": ("床", "giường", "أسرّة", "vitanda"),
}
COMPARATIVES: Table = {
    "older": ("年长", "lớn tuổi", "أكبر سنًا", "mkubwa kiumri"),
    "younger": ("年轻", "nhỏ tuổi", "أصغر سنًا", "mdogo kiumri"),
}
SITUATIONS: Table = {
    "is hungry": ("饿了", "đang đói", "جائع(|ة)", "ana njaa"),
    "is thirsty": ("口渴了", "đang khát", "(عطشان|عطشى)", "ana kiu"),
    "is tired": ("累了", "đang mệt", "متعب(|ة)", "amechoka"),
    "is sick": ("生病了", "bị ốm", "مريض(|ة)", "ni mgonjwa"),
    "feels cold": ("觉得冷", "thấy lạnh", "(يشعر|تشعر) بالبرد", "anahisi baridi"),
    "stands in the rain": ("站在雨中", "đứng dưới mưa", "(يقف|تقف) تحت المطر", "amesimama kwenye mvua"),
    "is in the dark": ("在黑暗中", "ở trong bóng tối", "في الظلام", "yuko gizani"),
    "is very dirty": ("身上很脏", "đang rất bẩn", "متسخ(|ة) جدًا", "ni mchafu sana"),
    "feels hot": ("觉得热", "thấy nóng", "(يشعر|تشعر) بالحر", "anahisi joto"),
    "is late": ("迟到了", "bị muộn", "متأخر(|ة)", "amechelewa"),
    "has an exam tomorrow": ("明天有考试", "có bài thi ngày mai", "لدي(ه|ها) امتحان غدًا", "ana mtihani kesho"),
    "is very sad": ("很伤心", "rất buồn", "حزين(|ة) جدًا", "ana huzuni sana"),
    "hears a joke": ("听到有趣的事", "nghe chuyện hài", "(يسمع|تسمع) نكتة", "amesikia mzaha"),
    "has lost a ring": ("丢了戒指", "bị mất nhẫn", "أضاع(|ت) الخاتم", "amepoteza pete"),
    "sees a fire": ("看见火灾", "thấy đám cháy", "(يرى|ترى) حريقًا", "ameona moto"),
    "wants to travel": ("想旅行", "muốn đi du lịch", "(يريد|تريد) السفر", "anataka kusafiri"),
    "wants to hear music": ("想听音乐", "muốn nghe nhạc", "(يريد|تريد) سماع الموسيقى", "anataka kusikia muziki"),
    "wants to cook": ("想做饭", "muốn nấu ăn", "(يريد|تريد) الطبخ", "anataka kupika"),
    "wants to write a letter": ("想写信", "muốn viết thư", "(يريد|تريد) كتابة رسالة", "anataka kuandika barua"),
    "wants to catch fish": ("想钓鱼", "muốn câu cá", "(يريد|تريد) صيد السمك", "anataka kuvua samaki"),
    "needs money": ("需要钱", "cần tiền", "(يحتاج|تحتاج) إلى المال", "anahitaji pesa"),
    "has made a mistake": ("做错了事", "đã làm sai", "ارتكب(|ت) خطأ", "amefanya kosa"),
    "has received a gift": ("收到礼物", "nhận được quà", "(تلقى|تلقت) هدية", "amepokea zawadi"),
}
ENDINGS: Table = {  # the k-th is what follows from the k-th situation
    "eat bread": ("吃面包", "ăn bánh mì", "(يأكل|تأكل) الخبز", "atakula mkate"),
    "drink water": ("喝水", "uống nước", "(يشرب|تشرب) الماء", "atakunywa maji"),
    "go to sleep": ("去睡觉", "đi ngủ", "(يذهب|تذهب) إلى النوم", "atakwenda kulala"),
    "see a doctor": ("看医生", "đi khám bác sĩ", "(يزور|تزور) الطبيب", "atamwona daktari"),
    "put on a coat": ("穿上大衣", "mặc áo khoác", "(يلبس|تلبس) المعطف", "atavaa koti"),
    "open an umbrella": ("撑伞", "mở ô", "(يفتح|تفتح) المظلة", "atafungua mwavuli"),
    "switch on the lamp": ("开灯", "bật đèn", "(يشعل|تشعل) المصباح", "atawasha taa"),
    "take a bath": ("洗澡", "đi tắm", "(يستحم|تستحم)", "ataoga"),
    "open the window": ("打开窗户", "mở cửa sổ", "(يفتح|تفتح) النافذة", "atafungua dirisha"),
    "run fast": ("快跑", "chạy nhanh", "(يركض|تركض) بسرعة", "atakimbia haraka"),
    "study hard": ("努力学习", "học chăm chỉ", "(يدرس|تدرس) بجد", "atasoma kwa bidii"),
    "cry": ("哭", "khóc", "(يبكي|تبكي)", "atalia"),
    "laugh": ("大笑", "cười", "(يضحك|تضحك)", "atacheka"),
    "search everywhere": ("到处寻找", "tìm khắp nơi", "(يبحث|تبحث) في كل مكان", "atatafuta kila mahali"),
    "call for help": ("呼救", "kêu cứu", "(يطلب|تطلب) النجدة", "ataomba msaada"),
    "buy a ticket": ("买票", "mua vé", "(يشتري|تشتري) تذكرة", "atanunua tiketi"),
    "turn on the radio": ("打开广播", "bật đài", "(يشغل|تشغل) المذياع", "atawasha redio"),
    "light the stove": ("点燃炉子", "nhóm bếp", "(يوقد|توقد) الفرن", "atawasha jiko"),
    "take a pen": ("拿起笔", "lấy bút", "(يأخذ|تأخذ) قلمًا", "atachukua kalamu"),
    "go to the river": ("去河边", "ra sông", "(يذهب|تذهب) إلى النهر", "atakwenda mtoni"),
    "look for a job": ("找工作", "tìm việc làm", "(يبحث|تبحث) عن عمل", "atatafuta kazi"),
    "say sorry": ("道歉", "xin lỗi", "(يعتذر|تعتذر)", "ataomba radhi"),
    "say thank you": ("说谢谢", "nói cảm ơn", "(يقول|تقول) شكرًا", "atasema asante"),
}
LABELS: Table = {
    "yes": ("是", "đúng", "نعم", "ndiyo"),
    "no": ("不是", "sai", "لا", "hapana"),
    "maybe": ("也许", "có lẽ", "ربما", "labda"),
}

AGES = [str(age) for age in range(20, 100, 10)]

PEOPLE: Table = WOMEN | MEN
TABLES = (PEOPLE, PLACES, CATEGORIES, THINGS, COMPARATIVES, SITUATIONS, ENDINGS, LABELS)
PHRASES = frozenset(PLACES | SITUATIONS | ENDINGS)
WORDS: Table = {english: row for table in TABLES for english, row in table.items()}

CATEGORY_OF = {thing: list(CATEGORIES)[k // 4] for k, thing in enumerate(THINGS)}
ENDING_OF = dict(zip(SITUATIONS, ENDINGS, strict=True))

# Situations whose endings are not told apart well enough, one way or the other: who is sick may go to sleep, too.
# Such a pair is never the choice of an item, in neither order, so an ending says nothing about whether it is right.
_ALIKE = {
    "is hungry": "is thirsty, wants to cook, wants to catch fish, needs money",
    "is thirsty": "is sick, feels hot, wants to catch fish",
    "is tired": "is sick, is in the dark, is very dirty, has an exam tomorrow, is very sad",
    "is sick": "feels cold, feels hot, sees a fire",
    "feels cold": "stands in the rain, is very dirty, wants to cook",
    "stands in the rain": "feels hot, is late",
    "is in the dark": "feels hot, has an exam tomorrow, has lost a ring, sees a fire, wants to cook",
    "is very dirty": "feels hot, wants to catch fish",
    "feels hot": "sees a fire, wants to catch fish",
    "is late": "sees a fire, wants to travel, has made a mistake",
    "has an exam tomorrow": "wants to write a letter, has made a mistake",
    "is very sad": "is hungry, is sick, is in the dark, has lost a ring, sees a fire, wants to hear music, "
    "needs money, has made a mistake, has received a gift",
    "hears a joke": "has received a gift",
    "has lost a ring": "sees a fire, needs money, has made a mistake",
    "sees a fire": "wants to catch fish, has made a mistake",
    "wants to travel": "wants to catch fish",
    "wants to write a letter": "has made a mistake",
}
ALIKE = {frozenset((one, other)) for one, others in _ALIKE.items() for other in others.split(", ")}

# What is said, without the full stop. {0}, {1} ... are words.
STATEMENTS = {
    "en": {
        "at": ("{0} is {1}",),
        "has": ("{0} has {1}",),
        "lacks": ("{0} has no {1}",),
        "age": ("{0} is {1} years old",),
        "situation": ("{0} {1}",),
        "will": ("{0} will {1}",),
    },
    "zh": {
        "at": ("{0}{1}",),
        "has": ("{0}有{1}",),
        "lacks": ("{0}没有{1}",),
        "age": ("{0}{1}岁",),
        "situation": ("{0}{1}",),
        "will": ("{0}会{1}",),
    },
    "vi": {
        "at": ("{0} {1}",),
        "has": ("{0} có {1}",),
        "lacks": ("{0} không có {1}",),
        "age": ("{0} {1} tuổi",),
        "situation": ("{0} {1}",),
        "will": ("{0} sẽ {1}",),
    },
    "ar": {
        "at": ("{0} {1}",),
        "has": ("عند {0} {1}",),
        "lacks": ("ليس عند {0} {1}",),
        "age": ("عمر {0} {1} سنة",),
        "situation": ("{0} {1}",),
        "will": ("{0} {1}",),
    },
    "sw": {
        "at": ("{0} yuko {1}",),
        "has": ("{0} ana {1}",),
        "lacks": ("{0} hana {1}",),
        "age": ("{0} ana umri wa miaka {1}",),
        "situation": ("{0} {1}",),
        "will": ("{0} {1}",),
    },
}

# What is asked, in three wordings. {0} of "entails" is a statement.
QUESTIONS = {
    "en": {
        "where": ("Where is {0}?", "In which place is {0}?", "Do you know where {0} is?"),
        "who_at": ("Who is {0}?", "Which person is {0}?", "Do you know who is {0}?"),
        "what": ("What does {0} have?", "What is it that {0} has?", "Do you know what {0} has?"),
        "who_has": ("Who has {0}?", "Which person has {0}?", "Do you know who has {0}?"),
        "who_situation": ("Who {0}?", "Which person {0}?", "Do you know who {0}?"),
        "age_more": (
            "How old is the {0} one?",
            "What age is the {0} one?",
            "Do you know how old the {0} one is?",
        ),
        "entails": ("Is it true that {0}?", "Does it follow that {0}?", "Can we say that {0}?"),
        "choose": (
            "What will {0} do: {1} or {2}?",
            "What will {0} do next: {1} or {2}?",
            "What is {0} most likely to do: {1} or {2}?",
        ),
    },
    "zh": {
        "where": ("{0}在哪里？", "{0}在什么地方？", "你知道{0}在哪里吗？"),
        "who_at": ("谁{0}？", "哪个人{0}？", "你知道谁{0}吗？"),
        "what": ("{0}有什么？", "{0}都有什么？", "你知道{0}有什么吗？"),
        "who_has": ("谁有{0}？", "哪个人有{0}？", "你知道谁有{0}吗？"),
        "who_situation": ("谁{0}？", "哪个人{0}？", "你知道谁{0}吗？"),
        "age_more": ("更{0}的人多大？", "更{0}的人多少岁？", "你知道更{0}的人多大吗？"),
        "entails": ("{0}，这是真的吗？", "是不是可以推出{0}？", "是不是可以说{0}？"),
        "choose": (
            "{0}会做什么：{1}还是{2}？",
            "{0}接下来会做什么：{1}还是{2}？",
            "{0}最可能做什么：{1}还是{2}？",
        ),
    },
    "vi": {
        "where": ("{0} ở đâu?", "{0} ở chỗ nào?", "Bạn có biết {0} ở đâu không?"),
        "who_at": ("Ai {0}?", "Người nào {0}?", "Bạn có biết ai {0} không?"),
        "what": ("{0} có gì?", "Thứ mà {0} có là gì?", "Bạn có biết {0} có gì không?"),
        "who_has": ("Ai có {0}?", "Người nào có {0}?", "Bạn có biết ai có {0} không?"),
        "who_situation": ("Ai {0}?", "Người nào {0}?", "Bạn có biết ai {0} không?"),
        "age_more": (
            "Người {0} hơn bao nhiêu tuổi?",
            "Tuổi của người {0} hơn là bao nhiêu?",
            "Bạn có biết người {0} hơn bao nhiêu tuổi không?",
        ),
        "entails": ("Có đúng là {0} không?", "Từ đó suy ra {0}, đúng không?", "Nói rằng {0} có đúng không?"),
        "choose": (
            "{0} sẽ làm gì: {1} hay {2}?",
            "Tiếp theo {0} sẽ làm gì: {1} hay {2}?",
            "Nhiều khả năng {0} sẽ làm gì: {1} hay {2}?",
        ),
    },
    "ar": {
        "where": ("أين {0}؟", "في أي مكان {0}؟", "هل تعرف أين {0}؟"),
        "who_at": ("من {0}؟", "أي شخص {0}؟", "هل تعرف من {0}؟"),
        "what": ("ماذا عند {0}؟", "ما الذي عند {0}؟", "هل تعرف ماذا عند {0}؟"),
        "who_has": ("من عنده {0}؟", "أي شخص عنده {0}؟", "هل تعرف من عنده {0}؟"),
        "who_situation": ("من {0}؟", "أي شخص {0}؟", "هل تعرف من {0}؟"),
        "age_more": ("كم عمر من هو {0}؟", "ما عمر من هو {0}؟", "هل تعرف كم عمر من هو {0}؟"),
        "entails": ("هل هذا صحيح: {0}؟", "هل نستنتج ما يلي: {0}؟", "هل يمكن القول: {0}؟"),
        "choose": (
            "ماذا (يفعل|تفعل) {0}: {1} أم {2}؟",
            "ماذا (يفعل|تفعل) {0} بعد ذلك: {1} أم {2}؟",
            "ما الذي (يفعله|تفعله) {0} على الأرجح: {1} أم {2}؟",
        ),
    },
    "sw": {
        "where": ("{0} yuko wapi?", "{0} yuko mahali gani?", "Je, unajua {0} yuko wapi?"),
        "who_at": ("Nani yuko {0}?", "Ni mtu gani aliye {0}?", "Je, unajua nani yuko {0}?"),
        "what": ("{0} ana nini?", "Ni kitu gani ambacho {0} anacho?", "Je, unajua {0} ana nini?"),
        "who_has": ("Nani ana {0}?", "Ni mtu gani mwenye {0}?", "Je, unajua nani ana {0}?"),
        "who_situation": ("Nani {0}?", "Ni mtu gani {0}?", "Je, unajua nani {0}?"),
        "age_more": (
            "Aliye {0} zaidi ana umri gani?",
            "Aliye {0} zaidi ana umri wa miaka mingapi?",
            "Je, unajua aliye {0} zaidi ana umri gani?",
        ),
        "entails": (
            "Je, ni kweli kwamba {0}?",
            "Je, inamaanisha kwamba {0}?",
            "Je, tunaweza kusema kwamba {0}?",
        ),
        "choose": (
            "{0} atafanya nini: {1} au {2}?",
            "{0} atafanya nini baada ya hapo: {1} au {2}?",
            "Inaelekea {0} atafanya nini: {1} au {2}?",
        ),
    },
}
FRAMES = {language: STATEMENTS[language] | QUESTIONS[language] for language in LANGUAGES}

# Dictionary lines, without what they end in: the English after MEANS, for words and sentences, and the word of the
# language after GLOSSARY.
MEANS = "{x} means"
GLOSSARY = {
    "zh": "{e}翻译过来就是",
    "vi": "{e} dịch ra là",
    "ar": "العبارة {e} معناها",
    "sw": "{e} maana yake ni",
}
