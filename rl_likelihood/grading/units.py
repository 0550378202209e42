"""Words that may follow a number: units, and those that change its value (million)."""

from __future__ import annotations

# One line a unit: the name that it gets, then its other spellings. Plurals are made of the first two.
_LINES = """
m meter metre
cm centimeter centimetre
mm millimeter millimetre
km kilometer kilometre kms
inch in
foot feet ft
yard yd yds
mile mi
g gram gm gms
kg kilogram kgs
mg milligram
ton tonne
lb pound lbs
oz ounce
L liter litre
mL milliliter millilitre ml
gallon gal
quart qt
pint pt
cup
s second sec secs
ms millisecond
minute min mins
h hour hr hrs
day
week
month
year yr yrs
mph
kph kmh
degree deg degs
radian rad rads
percent pct
dollar USD
cent
euro EUR
pound-sterling GBP
N newton
J joule
kJ kilojoule
W watt
kW kilowatt
V volt
A ampere amp
ohm
Hz hertz
kHz
MHz
GHz
K kelvin
Pa pascal
kPa
mol mole
unit
C
F
am a.m. AM A.M. a.m
pm p.m. PM P.M. p.m
"""
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_ONE_LETTER_ONLY_IN_TEXT = 2  # a shorter run of letters is a unit inside of \text{} alone


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    for line in _LINES.split("\n"):
        names = line.split()
        for name in names:
            table[name] = names[0]
        for name in names[:3]:
            if len(name) > 2 and name.isalpha():
                table[f"{name}s"] = table[f"{name.capitalize()}s"] = table[name.capitalize()] = names[0]
    return table


_CANONICAL = _table()
# What a bare run of letters after a number may be.
UNITS = {name for name in (*_CANONICAL, *SCALES) if len(name) >= _ONE_LETTER_ONLY_IN_TEXT}
KNOWN = frozenset(_CANONICAL.values())
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_NOTHING = {"of", "the"}


def canonical(words: str) -> tuple[int, str, bool]:
    """(factor, one spelling, whether all of it is known) of the words, powers and slashes after a number.

    "million square centimeters" is (1000000, "cm^2", True); "ways" is (1, "ways", False).
    """
    factor, out, power, known = 1, [], "", True
    for word in words.replace("/", " / ").replace("^", " ^").split():
        bare = word.strip(".,") if word not in _CANONICAL else word
        if bare in SCALES and not out:
            factor *= SCALES[bare]
        elif bare in _POWERS:
            if out and bare in ("squared", "cubed"):
                out[-1] += f"^{_POWERS[bare]}"
            else:
                power = _POWERS[bare]
        elif bare.startswith("^"):
            if not out:
                return factor, words, False
            out[-1] += bare
        elif bare in ("/", "per", "an", "a") and out:
            if out[-1] != "/":
                out.append("/")
        elif bare and bare not in _NOTHING:
            unit = _CANONICAL.get(bare)
            known = known and unit is not None
            out.append((unit or bare) + (f"^{power}" if power else ""))
            power = ""
    text = " ".join(out)
    return factor, text, known and not power and (not out or out[-1] != "/")
