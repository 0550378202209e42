"""Units after a number, and words that change its value (million): a small grammar, read whole or unknown.

[scale ...] [square | cubic] unit [^2 | squared] [(per | /) unit [^2]] ...     million square cm per second, m s^-1
"""

import dataclasses
import re

# The name that a unit gets, then its other spellings. Plurals are made of all that are words.
_NAMES = """
m meter metre; cm centimeter centimetre; mm millimeter millimetre; km kilometer kilometre kms; nm nanometer;
um micrometer micrometre micron; us microsecond; ug microgram; uF; uH; uA; uV; uW;
inch in; foot feet ft; yard yd yds; mile mi; acre; hectare ha; g gram gm gms; kg kilogram kgs; mg milligram;
ton tonne; lb pound lbs; oz ounce; L liter litre; mL milliliter millilitre ml; gallon gal; quart qt; pint pt;
cup; s second sec secs; ms millisecond; minute min mins; h hour hr hrs; day; week; month; year yr yrs; decade;
century; mph; kph kmh; rpm; degree deg degs; radian rad rads; percent pct; dollar USD buck;
cent penny pennies pence; euro EUR; pound-sterling GBP; yen JPY; rupee INR; N newton; kN kilonewton; J joule;
kJ kilojoule; MJ megajoule; eV; keV; MeV; cal calorie; kcal kilocalorie; W watt; kW kilowatt; kWh; Wh; tesla; henry;
MW megawatt; mW milliwatt; V volt; A ampere amp; ohm Omega; F farad; Hz hertz; kHz kilohertz; MHz megahertz;
GHz gigahertz; dB decibel; dBm; dBi; bps; kbps Kbps; Mbps; Gbps; bit; kbit; Mbit; Gbit; byte; kB KB; MB; GB;
Erlang erlang; packet; symbol; sample; K kelvin; Pa pascal; kPa kilopascal; MPa megapascal; GPa gigapascal;
kOmega kilohm kiloohm; MOmega megohm megaohm; atm atmosphere; mol mole; unit; C Celsius; Fahrenheit;
am a.m. AM A.M. a.m; pm p.m. PM P.M. p.m
"""
_COMPOUND = {"mph": "mile / h", "kph": "km / h"}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_BEFORE = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_AFTER = {"squared": "^2", "cubed": "^3", "^2": "^2", "^3": "^3"}
_BELOW = {"^-1": "", "^-2": "^2", "^-3": "^3"}  # s^-1: per second
_JOINTS = ("per", "/", "an", "a", "*")
_OF_TEMPERATURE = {"C": "C", "F": "F", "Fahrenheit": "F"}


def _plural(name: str) -> str:
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("ch", "sh", "s", "x", "z")) else f"{name}s"


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    for names in map(str.split, _NAMES.split(";")):
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
    left = words.replace("/", " / ").replace("*", " * ").replace("^", " ^").split()
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
    """Words without article and case, but for single letters and up to three capitals, which are symbols: A, AB."""

    def bare(word: str) -> str:
        return word if len(word) == 1 or (word.isupper() and len(word) <= 3) else word.casefold()

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
