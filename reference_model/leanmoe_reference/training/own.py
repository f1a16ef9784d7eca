"""Text of our own: short conversations in four languages and arithmetic, all answers right.

Every conversation has a key; the split holds out whole keys, so a question asked in the
held-out text was never answered in the training text in that language.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

LANGUAGES = ("en", "fr", "de", "es")

# country and capital in English, French, German, Spanish
_CAPITALS = """
France Paris|la France Paris|Frankreich Paris|Francia París
Germany Berlin|l'Allemagne Berlin|Deutschland Berlin|Alemania Berlín
Spain Madrid|l'Espagne Madrid|Spanien Madrid|España Madrid
Italy Rome|l'Italie Rome|Italien Rom|Italia Roma
Portugal Lisbon|le Portugal Lisbonne|Portugal Lissabon|Portugal Lisboa
Greece Athens|la Grèce Athènes|Griechenland Athen|Grecia Atenas
Austria Vienna|l'Autriche Vienne|Österreich Wien|Austria Viena
Switzerland Bern|la Suisse Berne|die_Schweiz Bern|Suiza Berna
Belgium Brussels|la Belgique Bruxelles|Belgien Brüssel|Bélgica Bruselas
Denmark Copenhagen|le Danemark Copenhague|Dänemark Kopenhagen|Dinamarca Copenhague
Norway Oslo|la Norvège Oslo|Norwegen Oslo|Noruega Oslo
Sweden Stockholm|la Suède Stockholm|Schweden Stockholm|Suecia Estocolmo
Finland Helsinki|la Finlande Helsinki|Finnland Helsinki|Finlandia Helsinki
Poland Warsaw|la Pologne Varsovie|Polen Warschau|Polonia Varsovia
Hungary Budapest|la Hongrie Budapest|Ungarn Budapest|Hungría Budapest
Romania Bucharest|la Roumanie Bucarest|Rumänien Bukarest|Rumania Bucarest
Bulgaria Sofia|la Bulgarie Sofia|Bulgarien Sofia|Bulgaria Sofía
Ireland Dublin|l'Irlande Dublin|Irland Dublin|Irlanda Dublín
Russia Moscow|la Russie Moscou|Russland Moskau|Rusia Moscú
Ukraine Kyiv|l'Ukraine Kiev|die_Ukraine Kiew|Ucrania Kiev
Turkey Ankara|la Turquie Ankara|die_Türkei Ankara|Turquía Ankara
Egypt Cairo|l'Égypte Le_Caire|Ägypten Kairo|Egipto El_Cairo
Morocco Rabat|le Maroc Rabat|Marokko Rabat|Marruecos Rabat
Tunisia Tunis|la Tunisie Tunis|Tunesien Tunis|Túnez Túnez
Kenya Nairobi|le Kenya Nairobi|Kenia Nairobi|Kenia Nairobi
Japan Tokyo|le Japon Tokyo|Japan Tokio|Japón Tokio
China Beijing|la Chine Pékin|China Peking|China Pekín
India New_Delhi|l'Inde New_Delhi|Indien Neu-Delhi|India Nueva_Delhi
Canada Ottawa|le Canada Ottawa|Kanada Ottawa|Canadá Ottawa
Australia Canberra|l'Australie Canberra|Australien Canberra|Australia Canberra
Argentina Buenos_Aires|l'Argentine Buenos_Aires|Argentinien Buenos_Aires|Argentina Buenos_Aires
Chile Santiago|le Chili Santiago|Chile Santiago|Chile Santiago
Peru Lima|le Pérou Lima|Peru Lima|Perú Lima
Colombia Bogotá|la Colombie Bogota|Kolumbien Bogotá|Colombia Bogotá
Cuba Havana|Cuba La_Havane|Kuba Havanna|Cuba La_Habana
Iceland Reykjavik|l'Islande Reykjavik|Island Reykjavík|Islandia Reikiavik
"""
_WORDS = """
water|l'eau|das Wasser|el agua
bread|le pain|das Brot|el pan
house|la maison|das Haus|la casa
tree|l'arbre|der Baum|el árbol
book|le livre|das Buch|el libro
dog|le chien|der Hund|el perro
cat|le chat|die Katze|el gato
horse|le cheval|das Pferd|el caballo
bird|l'oiseau|der Vogel|el pájaro
fish|le poisson|der Fisch|el pescado
sun|le soleil|die Sonne|el sol
moon|la lune|der Mond|la luna
star|l'étoile|der Stern|la estrella
sea|la mer|das Meer|el mar
river|la rivière|der Fluss|el río
mountain|la montagne|der Berg|la montaña
city|la ville|die Stadt|la ciudad
street|la rue|die Straße|la calle
school|l'école|die Schule|la escuela
friend|l'ami|der Freund|el amigo
mother|la mère|die Mutter|la madre
father|le père|der Vater|el padre
child|l'enfant|das Kind|el niño
day|le jour|der Tag|el día
night|la nuit|die Nacht|la noche
year|l'année|das Jahr|el año
hand|la main|die Hand|la mano
head|la tête|der Kopf|la cabeza
heart|le cœur|das Herz|el corazón
door|la porte|die Tür|la puerta
window|la fenêtre|das Fenster|la ventana
table|la table|der Tisch|la mesa
apple|la pomme|der Apfel|la manzana
milk|le lait|die Milch|la leche
cheese|le fromage|der Käse|el queso
coffee|le café|der Kaffee|el café
train|le train|der Zug|el tren
car|la voiture|das Auto|el coche
key|la clé|der Schlüssel|la llave
letter|la lettre|der Brief|la carta
"""
_DAYS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "lunes martes miércoles jueves viernes sábado domingo",
)
_MONTHS = (
    "January February March April May June July August September October November December",
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
)
_CAPITAL = (
    ("What is the capital of {0}?", "The capital of {0} is {1}."),
    ("Quelle est la capitale de {0} ?", "La capitale de {0} est {1}."),
    ("Was ist die Hauptstadt von {0}?", "Die Hauptstadt von {0} ist {1}."),
    ("¿Cuál es la capital de {0}?", "La capital de {0} es {1}."),
)
_COUNTRY = (
    ("In which country is {1}?", "{1} is the capital of {0}."),
    ("Dans quel pays se trouve {1} ?", "{1} est la capitale de {0}."),
    ("In welchem Land liegt {1}?", "{1} ist die Hauptstadt von {0}."),
    ("¿En qué país está {1}?", "{1} es la capital de {0}."),
)
_AFTER = (
    ("What comes after {0}?", "After {0} comes {1}."),
    ("Qu'est-ce qui vient après {0} ?", "Après {0} vient {1}."),
    ("Was kommt nach {0}?", "Nach {0} kommt {1}."),
    ("¿Qué viene después de {0}?", "Después de {0} viene {1}."),
)
_SUM = (
    ("What is {a} {op} {b}?", "{a} {op} {b} = {c}."),
    ("Combien font {a} {op} {b} ?", "{a} {op} {b} = {c}."),
    ("Wie viel ist {a} {op} {b}?", "{a} {op} {b} = {c}."),
    ("¿Cuánto es {a} {op} {b}?", "{a} {op} {b} = {c}."),
)
_TRANSLATE = (
    ("How do you say “{0}” in English?", "In English: {1}."),
    ("Comment dit-on « {0} » en français ?", "En français : {1}."),
    ("Wie heißt „{0}“ auf Deutsch?", "Auf Deutsch: {1}."),
    ("¿Cómo se dice «{0}» en español?", "En español: {1}."),
)

_NAMES = "Anna Ben Carla David Emma Felix Grace Hugo Ines Jonas Klara Leo Maria Nils"
_THINGS = "apples books coins eggs flowers keys letters marbles pears shells stamps tickets"
_TIMES, _OVER = "\u00d7", "\u00f7"

Turn = tuple[str, str]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_text(turns: list[Turn]) -> str:
    """A conversation in the base model's chat format, system prompt first."""
    parts = [f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"]
    for question, answer in turns:
        parts.append(f"<|im_start|>user\n{question}<|im_end|>\n")
        parts.append(f"<|im_start|>assistant\n{answer}<|im_end|>\n")
    return "".join(parts)


def conversations(language: int) -> Iterator[tuple[str, Turn]]:
    """(key, (question, answer)) of every fact, asked in one of ``LANGUAGES``."""
    for line in _CAPITALS.strip().splitlines():
        country, capital = _place(line.split("|")[language])
        for kind, (question, answer) in (("in", _COUNTRY[language]), ("of", _CAPITAL[language])):
            turn = _contract(question.format(country, capital), answer.format(country, capital))
            yield f"capital-{kind}-{country}", turn
    for line in _WORDS.strip().splitlines():
        words = line.split("|")
        for other in range(len(LANGUAGES)):
            if other != language:
                question, answer = _TRANSLATE[language]
                yield (
                    f"word-{words[0]}-{other}",
                    (question.format(words[other]), answer.format("", words[language])),
                )
    for names in (_DAYS[language].split(), _MONTHS[language].split()):
        for index, name in enumerate(names):
            question, answer = _AFTER[language]
            following = names[(index + 1) % len(names)]
            yield f"after-{name}", (question.format(name), answer.format(name, following))
    yield from _sums(language)


def _place(entry: str) -> tuple[str, str]:
    words = entry.split()
    country = " ".join(words[:-1]).replace("_", " ").replace("' ", "'")
    return country, words[-1].replace("_", " ")


def _contract(question: str, answer: str) -> Turn:
    """French ``de le`` and German articles put right."""

    def right(text: str) -> str:
        text = text.replace(" de le ", " du ").replace("von die ", "von der ")
        return text[0].upper() + text[1:]

    return right(question), right(answer)


def _sums(language: int) -> Iterator[tuple[str, Turn]]:
    draw = random.Random(f"sums-{language}")
    for _ in range(160):
        operator = draw.choice(f"+-{_TIMES}")
        a, b = draw.randint(2, 12), draw.randint(2, 12)
        if operator == "-":
            a, b = max(a, b) * 3, min(a, b)
        result = {"+": a + b, "-": a - b, _TIMES: a * b}[operator]
        question, answer = _SUM[language]
        values = {"a": a, "b": b, "op": operator, "c": result}
        yield f"sum-{a}{operator}{b}", (question.format(**values), answer.format(**values))


def arithmetic() -> Iterator[tuple[str, str]]:
    """(key, text) of small word problems with worked answers; no two the same."""
    draw = random.Random("arithmetic")
    seen: set[str] = set()
    while len(seen) < 900:
        kind = draw.randrange(4)
        who, other = draw.sample(_NAMES.split(), 2)
        thing = draw.choice(_THINGS.split())
        a, b, c = draw.randint(3, 60), draw.randint(2, 40), draw.randint(2, 9)
        text = (
            f"{who} has {a} {thing} and finds {b} more. {a} + {b} = {a + b}, "
            f"so {who} now has {a + b} {thing}.",
            f"{who} has {a + b} {thing} and gives {b} to {other}. {a + b} - {b} = {a}, "
            f"so {who} keeps {a} {thing}.",
            f"{other} packs {c} bags with {b} {thing} each. {c} {_TIMES} {b} = {c * b}, "
            f"so {other} packed {c * b} {thing}.",
            f"{who} shares {b * c} {thing} among {c} friends. {b * c} {_OVER} {c} = {b}, "
            f"so every friend gets {b} {thing}.",
        )[kind]
        key = f"{kind}-{a if kind < 2 else c}-{b}"
        if key not in seen:
            seen.add(key)
            yield key, text


_CONCEPTS = """
a computer|a river|gravity|photosynthesis|a poem|the moon|an atom|a compiler|a database|the heart
electricity|a volcano|a library|democracy|a triangle|the internet|bread|music|an algorithm|the sun
a virus|a telescope|a bridge|history|friendship|a variable|a web server|a file system|a loop
a function in programming|recursion|a password|a printer|an operating system|a text editor
the ocean|rain|a forest|an engine|a map|a clock|a novel|a fraction|a prime number|a noun|a verb
"""
_ASK = (
    "What is {}?",
    "Explain {} in one sentence.",
    "Tell me one fact about {}.",
    "Why is {} useful or important? Answer briefly.",
)


def parent_prompts() -> list[str]:
    """English prompts that the dense parent is asked; its good answers become training text."""
    concepts = [c for line in _CONCEPTS.strip().splitlines() for c in line.split("|")]
    return [ask.format(concept) for concept in concepts for ask in _ASK]


def good_answer(answer: str, ended: bool) -> bool:
    """Whether an answer of the parent is worth learning: ended, plain, long enough, no loop."""
    words = answer.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeats = len(runs) - len(set(runs))
    return ended and 6 <= len(words) <= 90 and repeats == 0 and answer.isascii()
