"""Units after a number, and words that change its value (million): a small grammar, read whole or unknown.

[scale ...] [square | cubic] unit [^2 | squared] [(per | /) unit [^2]] ...     million square cm per second, m s^-1
"""

import dataclasses
import re

# The name that a unit gets, then its other spellings. Plurals are made of all that are words.
_NAMES = """
m meter metre; km kms; um micron; inch in; foot feet ft; yard yd yds; mile mi; acre; hectare ha; g gram gm gms;
kg kgs; ton tonne; lb pound lbs; oz ounce; L liter litre; mL ml; gallon gal; quart qt; pint pt;
cup; s second sec secs; minute min mins; h hour hr hrs; day; week; month; year yr yrs; decade;
century; mph; kph kmh; rpm; revolution rev revs; degree deg degs; radian rad rads; percent pct; dollar USD buck;
cent penny pennies pence; euro EUR; pound-sterling GBP; yen JPY; rupee INR; N newton; J joule; eV;
cal calorie; Wh; tesla; henry; W watt; V volt; A ampere amp; ohm Omega; F farad; Hz hertz; dB decibel; dBm; dBi; dBW;
Np neper; bps; kbps Kbps; bit; kbit Kb; byte; kB KB;
Erlang erlang; packet; symbol; sample; baud Baud; frame; call; slot; K kelvin; Pa pascal;
kOmega kiloohm kilohm; MOmega megaohm megohm; atm atmosphere; mol mole; unit; C Celsius; Fahrenheit;
am a.m. AM A.M. a.m; pm p.m. PM P.M. p.m
"""
_PREFIXES = dict(zip("pnumckMGT", "pico nano micro milli centi kilo mega giga tera".split(), strict=True))
# Bases and the prefixes they are used with: no MN or GH, which are segments, and no pm, which is p.m.
_PREFIXED = """
m meter metre: numck; s second sec: pnum; g gram: numk; L liter litre: num; W watt: pnumkMGT; V volt: pnumkM;
A ampere amp: pnumk; F farad: pnum; H henry: pnum; Hz hertz: mkMGT; J joule: pnumkMGT; N newton: mk; Pa pascal: mkMG;
Omega ohm: mkMG; eV: mkMGT; Wh: kMGT; cal calorie: k; mol mole: num; bit b: kMGT; bps: kMGT; B byte: kMGT;
symbol: kM; sample: kM; baud Baud: kM; packet: kM
"""
_COMPOUND = {"mph": "mile / h", "kph": "km / h"} | {f"{p}bps": f"{p}bit / s" for p in ("", *"kMGT")}
_BITS = re.compile(r"(?<![A-Za-z])([kKMGT]?)b / s(?:ec)?(?![A-Za-z])")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_BEFORE = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_AFTER = {"squared": "^2", "cubed": "^3", "^2": "^2", "^3": "^3"}
_BELOW = {"^-1": "", "^-2": "^2", "^-3": "^3"}  # s^-1: per second
SHORT_WORDS = set("yes no odd all one two six ten red".split())  # in capitals too
_JOINTS = ("per", "/", "an", "a", "*")
_OF_TEMPERATURE = {"C": "C", "F": "F", "Fahrenheit": "F"}


def _plural(name: str) -> str:
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("ch", "sh", "s", "x", "z")) else f"{name}s"


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    prefixed = (base.split(":") for base in _PREFIXED.split(";"))
    multiples = [
        [f"{sign}{name}" for name in names.split() for sign in (prefix, _PREFIXES[prefix])]
        for names, prefixes in prefixed
        for prefix in prefixes.strip()
    ]
    for names in (*multiples, *map(str.split, _NAMES.split(";"))):
        for name in names:
            table[name] = names[0]
            if len(name) > 2 and name.isalpha() and name[1:].islower():
                for word in (name, _plural(name)):
                    table[word] = table[word.capitalize()] = names[0]
    return table


_CANONICAL = _table()
# What a bare run of letters after a number may be. A single letter is a unit in \\text{}, or with a power or a slash.
UNITS = {name for name in (*_CANONICAL, *SCALES, *_BEFORE, *_AFTER, "per") if len(name) > 1 and name.isalpha()}
LETTERS = {name for name in _CANONICAL if len(name) == 1 or name == "Omega"}


@dataclasses.dataclass(frozen=True)
class Measure:
    """What words after a number say: a factor, one spelling of the unit ("" for none), whether all of it is known."""

    factor: int
    unit: str
    known: bool = True


def canonical(words: str) -> Measure:
    """The unit that words, their powers and slashes spell: "million square centimeters" is 1000000, "cm^2"."""
    words = re.sub(r"\bper cent\b", "percent", words).replace(r"\mu ", "u").replace(r"\cdot ", "*")
    words = " ".join(words.replace("/", " / ").replace("*", " * ").replace("^", " ^").split())
    left = _BITS.sub(r"\1bps", words).split()
    left = [word if word in _CANONICAL else word.strip(".,") for word in left]
    factor = 1
    while left and left[0] in SCALES:
        factor *= SCALES[left.pop(0)]
    unit, left = _unit(left)
    out = ["1", "/", unit + _BELOW[left.pop(0)]] if unit and left and left[0] in _BELOW else [unit]
    while unit and left:
        joint = len(left) > 1 and left[0] in _JOINTS
        if not joint and not (_is_short(unit) and _is_short(left[0]) and left[0] != unit):
            break
        below = joint and left[0] != "*"
        unit, left = _unit(left[joint:])
        if unit and left and left[0] in _BELOW:
            if below:  # m / s^-1
                break
            out += ["/", unit + _BELOW[left.pop(0)]]
        else:
            out += ["/" if below else "*", unit]  # kg m
    if left:  # unknown words, as they stand
        return Measure(factor, " ".join(words.split()), known=False)
    return Measure(factor, " ".join(_COMPOUND.get(u, u) for u in out), known=out == [""] or all(out))


def _is_short(unit: str) -> bool:
    """Whether it is the short symbol of a unit, such as kg, and not a word."""
    return unit in _CANONICAL and len(unit) < 3


def _unit(words: list[str]) -> tuple[str, list[str]]:
    """The unit at the start of some words, "" for none, and the words after it."""
    power = _BEFORE.get(words[0], "") if words else ""
    rest = words[1:] if power else words
    name = _CANONICAL.get(rest[0]) if rest else None
    if name is None:
        return "", words
    rest = rest[1:]
    if name == "degree" and rest and _CANONICAL.get(rest[0]) in _OF_TEMPERATURE:
        name, rest = f"degree {_OF_TEMPERATURE[_CANONICAL[rest[0]]]}", rest[1:]
    if rest and rest[0] in _AFTER and not power:
        power, rest = _AFTER[rest[0]], rest[1:]
    return name + power, rest


def plain(words: str) -> str:
    """Words without article and case, but for single letters and up to three capitals, which are symbols: A, AB.

    The words of SHORT_WORDS are none.
    """

    def bare(word: str) -> str:
        symbol = len(word) == 1 or (word.isupper() and len(word) <= 3 and word.casefold() not in SHORT_WORDS)
        return word if symbol else word.casefold()

    said = [bare(word) for word in words.strip(" .").split()]
    said = said[1:] if len(said) > 1 and said[0] in ("a", "an", "the") and len(said[1]) > 1 else said
    return " ".join("solution" if word == "solutions" else word for word in said)


def same_words(words: str, others: str) -> bool:
    """The same but for case, a full stop, and singular or plural: 5 ways, 5 Way."""
    pairs = plain(words).split(), plain(others).split()
    return len(pairs[0]) == len(pairs[1]) and all(
        word == other or (min(len(word), len(other)) > 2 and (word == _plural(other) or other == _plural(word)))
        for word, other in zip(*pairs, strict=True)
    )
