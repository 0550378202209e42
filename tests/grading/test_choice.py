"""Multiple choice: an answer names one option, and every other word of it agrees."""

from __future__ import annotations

import pytest

from rl_likelihood.grading.text import choice, multiple_choice


@pytest.mark.parametrize(
    "text, number",
    [
        ("B", 2), ("b", 2), ("(B)", 2), ("(b) Text", None),
        ("(b) text", None), ("[C]", 3), ("B.", 2), ("B. 5G core", None), ("B) 5G core", None),
        ("B: 5G core", None), ("B - 5G core", None), ("**B**", 2), ("**B.** Text", None),
        ("B!", 2), ("B;", 2), ('The answer is "B"', 2), ("I think it is B", 2),
        ("Clearly, B", 2), ("B\u3002", 2), ("`B`", 2), ("\\boxed{B}", 2),
        ("$\\boxed{\\text{B}}$", 2), ("\\text{(B)}.", 2), ("option 2", 2),
        ("Option 2: 5G core", None), ("OPTION 2.", 2),
        ("(option 2)", 2), ("option B", 2), ("choice c", 3), ("option 12", 12), ("Answer: B", 2),
        ("answer is (D)", 4),
        ("The correct answer is B.", 2), ("The answer is: option 3", 3), ("  J \n", 10), ("A\nbecause", None),
        ("I say A, so \\boxed{C}", 3), ("Answer: **B**", 2), ("**Answer:** B", 2), ("The answer is **(B)**.", 2),
        ("The correct option is C.", 3), ("The correct choice is (C)", 3), ("The right option is: C) 5G", None),
        ("So the answer is C", 3), ("Therefore, the correct answer is option C.", 3), ("I choose C.", 3),
        ("I would pick (C)", 3),
        ("The best choice would be C", 3), ("Option C is correct.", 3), ("Correct option: C", 3),
        ("Final Answer: C", 3),
        ("The answer is C which is a cat", None), ("C is the correct option", 3), ("It's C.", 3), ("#### C", 3),
        ("\uff23", 3),
        ("\uff08\uff23\uff09", 3), ("The correct answer would be: **C**", 3), ("My answer is C", 3), ("<C>", 3),
        (r"\boxed{\text{(C)}}", 3), (r"\boxed{\textbf{C}}", 3), (r"\boxed{\mathrm{C}}", 3),
        (r"\boxed{\mathbf{(C)}}", 3),
        (r"\boxed{\text{Option C}}", 3), (r"\boxed{(C)\ 5G}", None), (r"\boxed{\text{C) 5G}}", None),
        (r"$\boxed{\textbf{(C)}\ 12}$", None),
        (r"\boxed{\text{The answer is C}}", 3), (r"The answer is \(C\).", 3), (r"\boxed{\left(C\right)}", 3),
        ("(D) Both (A) and (B)", None), ("D. Both A and B", None), ("D) Neither A nor B", None),
        ("option 4: Both (A) and (B)", None),
        ("(D) All of the above", None), ("(E) Only A and C", None), ("(D) A and B", None), ("D. Options A and B", None),
        ("\\boxed{(D) Both (A) and (B)}", None), ("The answer is (D) Both (A) and (B).", None),
        ("(D) Both (A) and (B). No: (C)", None),
        ("(D) or (A)", None), ("(A) (B) and (C)", None), ("Both (A) and (B)", None), ("A and B", None),
        ("The answer is A or B", None),
        ("The correct options are A and B", None), ("The answer is a cat", None), ("The answer is A cat", None),
        ("The option", None),
        ("not C", None), ("The answer is not C", None), ("The incorrect option is C", None),
        ("C or D is right", None),
        ("**B** is right", 2), ("B because it is", None), ("B, since it is", None), ("B is the answer.", 2),
        ("__B__", 2),
        ("B. USB type C.", None),
        ("B: Packet(s) of f(x), U.S. rules", None), ("B. 25 C and F = ma", None), ("B. A cat", None),
        ("(B) is right, so (B)", 2),
        ("b. i.e. this", None), ("A.B.C.D.", None), ("Answer: A. B. C. D.", None), ("Answer: A.B.C.", None),
        ("(A) or (B)", None), ("A. B. C. D.", None), ("(A)(B)(C)(D)", None), ("B) and C)", None),
        ("A\nB\nC\nD", None),
        ("option 1, option 2", None), ("Answer: A. Answer: B", None), ("(A), (B), (C)", None), ("**A** **B**", None),
        ("\\boxed{(A) or (B)}", None), ("A) or B", None), ("A: x; B: y", None), ("option A or option B", None),
        ("B or C", None), ("A cat", None), ("I think B", None), ("Beta", None), ("2", None), ("", None), ("BB", None),
        ("option", None), ("option 0", None), ("option 123", None), ("optional", None), ("(B", 2), ("B, C", None),
        *[(text, None) for text in (
            "Option B is wrong", "Option B is incorrect, C is right", "(B) is wrong", "(B) is false",
            "B because C is right", "B\n\nActually C", "B is wrong", "B. is wrong", "B: wrong",
            "B. No. C is right", "B. No. A is right",
            "B - C",
            "B is right? No", "B is right, no C", "B is correct because C", "option 2 or 3", "option 2.5", "option 2/3",
            "I choose B not", "I pick B over C", "it is B or", "B as in C", "B. I mean C", "B. Rather than C", "(B) A",
            "B because " + "it is " * 100 + "C",
        )],
        ("\u0412", None), ("B2", None), ("the answer is", None), ("\\boxed{A} \\boxed{B", None),
    ],
)  # fmt: skip
def test_choice(text, number):
    assert choice(text) == number


# What follows or leads to a name says that it is wrong, names another, or is not read; none of it is the option's text.
NOT_B = (
    """
B. This is wrong|B: Incorrect|B) Wrong answer|(B) Not the right option|B. Not correct|B. False|Option B: Eliminated
B. The third option is right|B. Only C is right|B because B is wrong|B since it is not B|B, which is wrong
B, as c is right|B because (c) is right|B as the answer is c|B is right. Answer: c|~B|~~B~~|\\neg B|\u00acB
\\overline{B}|B'|B?|not B|B is not right|The answer is not B|B is the wrong answer|B.2|B2|-B|!B|B^c|B: C|B (C)|B > C
Is it B|B is the best answer of the worst|Anything but B|I would not choose B|B isn't right|B is right, C is right
The answer is B because C is right|The answer is B since it is not A|The answer is B because it is small. Actually C
The answer is B because it is D|The answer is B because A and C are too small.|I think it's not B
The answer is B because option C is small|The answer is B because|The answer is B because of x: C|It is B because of C
B (incorrect)|B (wrong)|B, the wrong answer|Only B is wrong|Not only B is right|The least appropriate answer is B
The answer to the question is not B|The incorrect one is B|We do not choose B|B (correct) C|that would not be B
\\cancel{B}|B is true is false|The answer is B is wrong|2|C|B#|B++|the second option|B and C
option -2|answer -2|The unlikely answer is B|B is not the most likely answer|B is the least likely answer|C ( B )
The solution is not B|In conclusion, A or B|Selected option: B or C|is the answer B|B is unlikely
B is the most likely answer but C|The next best answer is B|that is a right answer, B|The only other option is B
\\boxed{B} is wrong, \\boxed{C}
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
IS_B = (
    """
I'd choose B|I'll go with B|Definitely B|It must be B|(B|B)|Ans: B|Answer - B|Answer = B|b|[B]|'B'|"B"
The answer is (B).|Option B|choice B|**B** is right|B is the correct option.|So the answer is B|B is right, so (B)
The answer is B because a cell is small|I think it's B
The correct answer is (B), since 5G has it|The option is B because of x
It has to be B|ANSWER: B|Option B is correct. Answer: B|The right answer is definitely B|The correct choice must be B
The most appropriate answer is B|The correct answer choice is B|The correct one is B|We choose B|that would be B
B (correct)|B, the correct answer|The answer to the question is B|Only B is correct|### B
The solution is B.|In conclusion, the answer is B.|Selected option: B|B is the most likely answer|( B )|{\\bf B}|[ B ]
\\underline{B}|\\boxed{{\\bf B}}|Finally, my chosen answer is ( B ).|The best response is B|So it is B, the best option
B is clearly right|option 2|\\boxed{\\text{(B)}}|the letter B|$\\mathbf{B}$|Final answer - (b)
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


def test_a_bare_letter_is_named_and_nothing_else_is_said():
    assert len(NOT_B) > 40 and len(IS_B) > 25
    assert [text for text in NOT_B if multiple_choice("B", text)] == []
    assert [text for text in IS_B if not multiple_choice("B", text)] == []


@pytest.mark.parametrize(
    "reference, right, wrong",
    [
        (
            "option 2: 5G core",
            "B|b|2|2.|(2)|option 2|2. 5G core|B: 5g core|B (5G core)|the answer is B, 5G core.|"
            "B - 5G core is right|choice B|the answer is 2 because it has 5g",
            "the answer is 2 because 3 is slow|"
            "C|3|-2|2.5|2/3|22|2 or 3|5G core|2. 4G|B. packets|B. 5G core, or C|B. 5G cores",
        ),
        ("option 4: Both (A) and (B)", "D|4|(D) Both (A) and (B)|D is right", "A|B|Both (A) and (B)"),
        ("(b) text", "B|b) text|(B) Text.", "2|(b) texts|(a) text"),
        ("B. Yes", "B|b. yes|B: Yes is correct", "B. No|B. Yes is wrong|2|Yes"),
        ("B", "option 2", "not B|B. packets"),
        ("C", "c", "(c) 7"),
        ("option 12", "12|L", "2|1"),
        ("Paris", " Paris ", "P|B"),  # no choice: compared as text
        ("A, B", "A, B", "A|B"),
        ("A cat", "A cat", "A"),
        ("The answer is 5", "The answer is 5", "5|E"),
        ("2", "2", "B|option 2"),
    ],
)
def test_the_options_own_text_may_follow_where_it_is_known(reference, right, wrong):
    assert [text for text in right.split("|") if not multiple_choice(reference, text)] == []
    assert [text for text in wrong.split("|") if multiple_choice(reference, text)] == []
    assert not multiple_choice(reference, None)
