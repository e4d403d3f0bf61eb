"""What instruction-tuned and base models really write, and what it answers."""

from __future__ import annotations

import time

import pytest

from thickets.tasks.countdown import PROMPT
from thickets.tasks.extraction import concluding
from thickets.tasks.problems import Problem
from thickets.tasks.scoring import open_scorer


def right(scorer: str, text: str, answer: object, prompt: str = "What?") -> bool:
    judge, problem = open_scorer(scorer), Problem(prompt, answer=answer)
    found = judge.extract(text, problem)
    return found is not None and judge.correct(found, problem)


NUMBERS = [
    ("Janet sells 16 - 3 - 4 = 9 eggs.\n9 * 2 = $18\n#### 18", "18"),
    ("...\n#### $18", "18"),
    ("...\n#### 18 dollars", "18"),
    ("...\n#### 18 dollars per 7 days", "18"),
    ("#### Step 1: eggs\n16-7=9\n#### Step 2: money\n9*2=18\nSo she makes $18 every day.", "18"),
    ("### Solution\n#### Step 1: eggs\n9\n#### Step 2: money\n18\n\n**Final Answer:** $18", "18"),
    ("#### Step 1\n9\n\n#### Final Answer\n18", "18"),
    ("#### Step 1\n9\n\n#### Final Answer: 18", "18"),
    ("#### 18\n#### Explanation of step 2", "18"),
    ("9*2=18\n#### 18\n\nJohn has 5 apples and 2 pears. How many?\n5+2=7\n#### 7", "18"),
    ("9*2=18\n#### 18\n\nQuestion: John has 5 apples. How many?\nAnswer: 7\n#### 7", "18"),
    ("The answer is 18.\n\nQuestion: John has 7?\nAnswer: The answer is 7.", "18"),
    ("The answer is 18.\n\nQ: John has 7?\nA: The answer is 7.", "18"),
    ("The answer is 18 dollars for 7 days.", "18"),
    ("The final answer is: $\\boxed{18}$", "18"),
    ("\\boxed{18 \\text{ m}^2}", "18"),
    ("\\boxed{18\\text{ dollars}}", "18"),
    ("\\boxed{\\$18}", "18"),
    ("\\boxed{x = 18}", "18"),
    ("<answer>18</answer>", "18"),
    ("<answer>Janet makes $18 per day</answer>", "18"),
    ("<think>maybe \\boxed{3}? #### 3 no</think>\nThe answer is 18", "18"),
    ("<think>maybe 3</think>\n18", "18"),
    ("So total:\n- 18 apples", "18"),
    ("So total is 20 eggs - 2 eggs left", "2"),
    ("The profit is -$5.", "-5"),
    ("#### -5", "-5"),
    ("#### - 5", "-5"),
    ("x = - 5", "-5"),
    ("#### 1,234", "1234"),
    ("#### 1 234", "1234"),
    ("#### 10 000", "10000"),
    ("\\boxed{10\\ 000}", "10000"),
    ("#### 1,234.00", "1234"),
    ("Thus the total is 1,234 dollars.", "1234"),
    ("total of $70,000.", "70000"),
    ("Answer: 18", "18"),
    ("**Answer: 18**", "18"),
    ("**Answer:** 18", "18"),
    ("Final answer: 3 * 6 = 18", "18"),
    ("The answer is 10 + 8 = 18 apples", "18"),
    ("the answer is therefore 18.", "18"),
    ("The answer is 18.0", "18"),
    ("The answer is 50%.", "50"),
    ("#### 50%", "50"),
    ("答案是18", "18"),
    ("答案是：18元", "18"),
    ("#### １８", "18"),
    ("So she makes \\$18 a day", "18"),
    ("She makes $9 \\times 2 = 18$ dollars.", "18"),
    ("$$9 \\times 2 = \\boxed{18}$$", "18"),
    ("#### 18\n<|im_end|>\n<|im_start|>user\nhow 5?<|im_end|> #### 5", "18"),
    ("#### 18<|endoftext|>Human: what? #### 5", "18"),
    ("18", "18"),
    ("18\n\nQuestion: 5?\nAnswer: 7", "18"),
    ("Solve... like this: #### 18\n\n4+5=9\n#### 9", "9"),
    ("\\boxed{18} \\boxed{20}", "20"),
    ("Rs.500", "500"),
    ("USD 18", "18"),
    ("18 eggs", "18"),
    ("It costs 18USD", "18"),
    ("first 5, then 6 and it is truncated because 9 * ", "9"),
    ("The answer is 1/2", "0.5"),
    ("#### 3/4", "0.75"),
    ("#### 2 1/2", "2.5"),
    ("#### 2½", "2.5"),
    ("**#### 18**", "18"),
    ("`#### 18`", "18"),
    ("####18", "18"),
    ("#####18", "18"),
    ("#### **18**", "18"),
    ("#### \\boxed{18}", "18"),
    ("#### $\\frac{1}{2}$", "0.5"),
    ("\\[ \\boxed{18} \\]\n\nTherefore, Janet makes 18 dollars every day at 2 markets", "18"),
    ("The answer is $18. She sells 9.", "18"),
    ("Therefore, the answer is: \n\n18", "18"),
    ("answer=18", "18"),
    ("The total is 3.5 hours", "3.5"),
    ("She pays $0.50", "0.5"),
    ("She pays $.50.", "0.5"),
    ("5 * $3.50 = $17.50.", "17.5"),
    ("There are 12 x 3 = 36 eggs", "36"),
    ("10^2 = 100", "100"),
]


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_numbers(text: str, answer: str) -> None:
    assert right("number:hashes", text, answer)


@pytest.mark.parametrize(("text", "answer"), [("is 2^3", "8"), ("The answer is eighteen", "18")])
def test_what_is_not_that_number(text: str, answer: str) -> None:
    assert not right("number:hashes", text, answer)


CHOICES = [
    ("B", "B"),
    ("B. Paris", "B"),
    ("(B)", "B"),
    ("The answer is (B).", "B"),
    ("The correct answer is B) because A is wrong", "B"),
    ("**B. Paris**", "B"),
    ("\\boxed{\\text{B}}", "B"),
    ("\\boxed{B. 5}", "B"),
    ("B. Paris\n\nQuestion: which?\nA. x\nB. y\nC. z\nAnswer: D", "B"),
    ("Option A is wrong. The correct option is (C).", "C"),
    ("Let's see. A is wrong, so B", "B"),
    ("The best answer is **C**.", "C"),
    ("Answer: C\nExplanation: A is bad, B is bad.", "C"),
    ("I choose B", "B"),
    ("正确答案是B", "B"),
    ("答案：B", "B"),
    ("The answer is B: Paris, not A", "B"),
    ("<answer>C</answer>", "C"),
    ("Thus, the answer is option D", "D"),
    ("C is the correct answer.", "C"),
    ("D) 5 cm", "D"),
]


@pytest.mark.parametrize(("text", "answer"), CHOICES)
def test_choices(text: str, answer: str) -> None:
    assert right("choice", text, answer)


@pytest.mark.parametrize(
    "text", ["Paris\n\nQuestion: And Italy?\nAnswer: Rome", "The answer is Paris.\nQ: And Italy?\nA: Rome"]
)
def test_a_question_that_the_model_goes_on_with_is_not_answered(text: str) -> None:
    assert right("exact", text, "Paris")
    assert right("contains", text, "Paris")
    assert not right("contains", text, "Rome")


def test_the_last_number_is_not_one_of_the_next_question() -> None:
    text = "She has 9 eggs.\nSo she makes 18 dollars.\n\nQuestion: Tom has 7?\nHe has 7 and 5.\n\nQ: And 3?"
    assert right("number:hashes", text, 18)


def test_a_prompt_that_the_model_repeats_begins_another_question() -> None:
    ask = "Solve this step by step. Put the result in a box, like this: \\boxed{7}"
    text = f"It is \\boxed{{4}}.\n\nWhat is 5?\n\n{ask}\n\n\\boxed{{5}}"
    assert right("number:boxed", text, 4, f"What is 4?\n\n{ask}")
    assert right("number:boxed", f"What is 4?\n\n{ask}\n\nIt is \\boxed{{4}}", 4)  # not answered before


@pytest.mark.parametrize(
    "text",
    [
        "Here is the problem again:\nQuestion: how many?\n\\boxed{4}",
        "Question: how many?\nAnswer: \\boxed{4}",
        "Question 1: how many eggs? 9.\n\nQuestion 2: how much money?\nAnswer: \\boxed{4}",
        "Question 1: how many eggs?\nAnswer: 9\nQuestion 2: how much money?\nAnswer: \\boxed{4}",
        "I restate it.\nThere are two parts.\nProblem: how many?\n\\boxed{4}",
        "<think>\nQuestion: how many? Is it \\boxed{3}?\n\\boxed{4}",
    ],
)
def test_a_question_restated_before_an_answer_cuts_nothing(text: str) -> None:
    assert right("number:boxed", text, 4)


@pytest.mark.parametrize(
    "unit", ["</think>", "\nQ:", "Q: answer is ", "\n", "<|im_end|>", "####", "#### 1\n", "    "]
)
def test_long_texts_take_little_time(unit: str) -> None:
    start = time.perf_counter()
    text = unit * 50_000
    concluding(text, "x" * 50)
    open_scorer("number:hashes").extract(text, Problem("x" * 50))
    assert time.perf_counter() - start < 5.0


GAME = {"numbers": [2, 5, 8], "target": 24}


@pytest.mark.parametrize(
    "text",
    [
        "<think>..</think><answer>(5-2)*8</answer>",
        "<answer>$(5-2)*8$</answer>",
        "<answer>**(5-2)*8**</answer>",
        "<answer>`(5-2)*8`</answer>",
        "<answer>(5-2) x 8</answer>",
        "<answer>(5-2)x8</answer>",
        "<answer>[5-2]*8</answer>",
        "<answer>(5-2)*8=24</answer>",
        "<answer>24=(5-2)*8</answer>",
        "<answer>\n(5 - 2) * 8\n</answer>",
        "<answer>$$ (5-2) \\times 8 = 24 $$</answer>",
        "<answer>\\( (5-2) \\cdot 8 \\)</answer>",
        "<answer>The expression is (5-2)*8.</answer>",
        "<answer>(5-2)*8",
        "So we get 5-2=3 and then (5-2)*8 = 24.",
        "I try 3+5=8. Then 8*(5-2)=24.",
        "8*(5-2) = 8*3 = 24",
        "5-2=3. 8*(5-2)=24",
        "(5-2)*8 = 24, which uses 2, 5 and 8",
        "**Answer:** (5-2)*8",
        "The answer is (5-2)*8.",
        "\\boxed{(5-2)*8}",
        "\\boxed{(5 - 2) \\times 8 = 24}",
        "Answer: `(5-2)*8`",
        "<answer>(5 – 2) × 8</answer>",
        "<answer>（5-2）×8</answer>",
        "<answer>-(2-5)*8</answer>",
        "<answer>8*-(2-5)</answer>",
        "<answer>((5)-(2))*(8)</answer>",
        "<answer>8*(5-2)</answer> is the final answer.",
        "<think>Let me try <answer>5+2</answer></think> <answer>(5-2)*8</answer>",
        "Step 1: 5 - 2 = 3\nStep 2: 3 * 8 = 24\n\nSo the final expression is: (5 - 2) * 8 = 24",
        "(5-2)*8 equals 24",
        "- (5-2)*8 = 24",
        "1. (5-2)*8 = 24",
        "3. 8*(5-2)",
        "<answer>(5-2)*8<answer>",
        "<answer> (5 - 2) * 8 </answer> </answer>",
    ],
)
def test_countdown(text: str) -> None:
    assert right("countdown", text, GAME)


@pytest.mark.parametrize(
    "text",
    [
        "Expression: (5 - 2) * 8\nCheck: 5 - 2 = 3, 3 * 8 = 24",
        "<answer>5+2*8</answer>",
        "<answer>5*2*8</answer>",
        "<answer>24</answer>",
        "<answer>8+8+8</answer>",
        "<answer>(5-2)*8*1</answer>",
        "<answer>(5-2)*8/1</answer>",
        "<answer>2**3+8+5</answer>",
        "<answer>__import__('os').system('x')</answer>",
        "<answer>(5-2)8</answer>",
        "<answer>52-28</answer>",
        "<answer>8/(1/(5-2))</answer>",
        "<answer>5-2=3, 3*8=24</answer>",
        "\\boxed{\\frac{8*(5-2)}{1}}",
        "<answer>\\frac{5-2}{1}*8</answer>",
        "<answer>" + "+".join([".5"] * 330) + "</answer>",
    ],
)
def test_what_makes_no_countdown(text: str) -> None:
    assert not right("countdown", text, GAME)


def test_the_next_game_that_a_model_makes_up_is_not_played() -> None:
    prompts = [PROMPT.format(target=target, numbers="2, 5, 8") for target in (24, 7)]
    text = f"<answer>(5-2)*8</answer>\n\n{prompts[1]}\n\n<answer>8-2+5</answer>"
    assert right("countdown", text, GAME, prompts[0])
