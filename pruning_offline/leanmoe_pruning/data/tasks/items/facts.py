"""Plain general knowledge: capitals, what a thing is, and opposites. Lists of our own."""

from __future__ import annotations

import random

from leanmoe_pruning.data.tasks.task import ChoiceItem

CHOICES = 4

_CAPITALS = """
France Paris; Germany Berlin; Spain Madrid; Italy Rome; Portugal Lisbon; England London;
Ireland Dublin; Scotland Edinburgh; Wales Cardiff; Austria Vienna; Hungary Budapest;
Poland Warsaw; Greece Athens; Norway Oslo; Sweden Stockholm; Finland Helsinki;
Denmark Copenhagen; Iceland Reykjavik; Belgium Brussels; Switzerland Bern; Russia Moscow;
Ukraine Kyiv; Romania Bucharest; Bulgaria Sofia; Serbia Belgrade; Croatia Zagreb;
Estonia Tallinn; Latvia Riga; Lithuania Vilnius; Turkey Ankara; Egypt Cairo; Morocco Rabat;
Tunisia Tunis; Libya Tripoli; Sudan Khartoum; Kenya Nairobi; Ethiopia Addis|Ababa;
Nigeria Abuja; Ghana Accra; Senegal Dakar; Uganda Kampala; Rwanda Kigali; Somalia Mogadishu;
Angola Luanda; Zambia Lusaka; Zimbabwe Harare; Madagascar Antananarivo; Israel Jerusalem;
Jordan Amman; Lebanon Beirut; Syria Damascus; Iraq Baghdad; Iran Tehran; Qatar Doha;
Afghanistan Kabul; Pakistan Islamabad; India New|Delhi; Nepal Kathmandu; Bangladesh Dhaka;
Thailand Bangkok; Vietnam Hanoi; Indonesia Jakarta; Malaysia Kuala|Lumpur; Philippines Manila;
China Beijing; Japan Tokyo; Mongolia Ulaanbaatar; Australia Canberra; New|Zealand Wellington;
Canada Ottawa; Mexico Mexico|City; Cuba Havana; Jamaica Kingston; Panama Panama|City;
Colombia Bogota; Venezuela Caracas; Ecuador Quito; Peru Lima; Bolivia La|Paz; Chile Santiago;
Argentina Buenos|Aires; Uruguay Montevideo; Paraguay Asuncion; Brazil Brasilia
"""
_KINDS = """
animal: dog cat horse cow sheep goat lion tiger elephant monkey wolf fox bear rabbit mouse;
bird: eagle owl sparrow parrot penguin crow swan hawk robin pigeon;
fish: salmon tuna trout cod shark herring sardine carp;
fruit: apple banana orange pear grape cherry peach plum mango lemon;
vegetable: carrot potato onion cabbage spinach broccoli lettuce celery;
metal: iron gold silver copper zinc lead nickel aluminium;
colour: red blue green yellow purple brown pink black;
instrument: violin piano guitar flute trumpet drum cello harp clarinet;
planet: Mars Venus Jupiter Saturn Mercury Neptune Uranus;
tool: hammer saw screwdriver wrench drill chisel axe;
insect: ant bee fly mosquito beetle butterfly wasp moth;
tree: oak pine maple birch willow cedar elm;
flower: rose tulip daisy lily violet orchid sunflower;
vehicle: car bus truck bicycle motorcycle van tractor;
sport: football tennis basketball baseball hockey golf rugby cricket
"""
_PHRASES = {"instrument": "musical instrument"}
# What one speaks of without an article.
_BARE = ("metal", "colour", "planet", "sport")
_OPPOSITES = """
hot cold; big small; up down; left right; black white; day night; good bad; happy sad; fast slow;
old young; rich poor; strong weak; high low; long short; light dark; open closed; wet dry; full
empty; hard soft; early late; true false; near far; inside outside; first last; love hate; war
peace; life death; friend enemy; push pull; win lose; buy sell; begin end; clean dirty; loud
quiet; thick thin; wide narrow; deep shallow; heavy light; easy difficult; sweet sour; brave
cowardly; north south; east west; male female; summer winter; success failure; question answer;
give take; arrive leave; remember forget; laugh cry; above below; before after; always never; all
none; cheap expensive; safe dangerous; tall short; smooth rough; sharp blunt; public private;
ancient modern; accept refuse; increase decrease; import export; maximum minimum; positive
negative
"""


def _pairs(text: str) -> list[tuple[str, str]]:
    rows = [row.split() for row in text.replace("\n", " ").split(";")]
    return [(a.replace("|", " "), b.replace("|", " ")) for a, b in rows]


def _groups() -> list[tuple[str, str]]:
    """(thing, kind) of every thing."""
    rows = [row.split(":") for row in _KINDS.replace("\n", " ").split(";")]
    return [(thing, kind.strip()) for kind, things in rows for thing in things.split()]


def _with_others(prompt: str, right: str, pool: list[str], draw: random.Random) -> ChoiceItem:
    wrong = draw.sample(sorted(set(pool) - {right}), CHOICES - 1)
    answer = draw.randrange(CHOICES)
    texts = (*wrong[:answer], right, *wrong[answer:])
    return ChoiceItem(prompt, tuple(f" {text}" for text in texts), answer)


def facts() -> list[ChoiceItem]:
    """Every item, shuffled."""
    draw = random.Random("facts")
    capitals, kinds, opposites = _pairs(_CAPITALS), _groups(), _pairs(_OPPOSITES)
    items = [
        _with_others(f"The capital of {country} is", city, [c for _, c in capitals], draw)
        for country, city in capitals
    ]
    names = [_PHRASES.get(kind, kind) for _, kind in kinds]
    items += [
        _with_others(f"{_subject(thing, kind)} is a kind of", name, names, draw)
        for (thing, kind), name in zip(kinds, names, strict=True)
    ]
    items += [
        _with_others(f"The opposite of {one} is", other, [o for _, o in opposites], draw)
        for one, other in opposites
    ]
    draw.shuffle(items)
    return items


def _subject(thing: str, kind: str) -> str:
    if kind in _BARE:
        return thing.capitalize()
    return f"An {thing}" if thing[0] in "aeiou" else f"A {thing}"
