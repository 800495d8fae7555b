"""Which program a completion contains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.verifiers.code.extract import extract_program, fences

NAMES = ("python", "py", "python3")
TICKS = "```"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("text\n```py\na\nb\n```\nmore", "a\nb\n"),
        ("```Python\na\n```", "a\n"),
        ("```python title=x\na\n```", "a\n"),
        ("```{.python}\na\n```", "a\n"),
        ("   ```python\na\n   ```", "a\n"),
        ("```python\r\na\r\n```\r\n", "a\r\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("```python\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```python\na\n```\n```cpp\nb\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("<think>```python\na\n```</think>```no```\n```python\nb\n```", "b\n"),
        ("<think>```python\na\n```</think>\nnothing", None),
        ("<think>\n```python\na\n```", None),
        ("```cpp\na\n```", None),
        ("```python\n\n```", None),
        ("```python\na\n```\n```python\n   \n```", None),
        ("no code", None),
        ("    ```python\na\n    ```", None),
        ("```python a``` inline\n", None),
        ("", None),
    ],
)
def test_policy(completion: str, program: str | None) -> None:
    assert extract_program(completion, NAMES) == program


def test_bare_code_counts_only_if_asked_for_and_without_any_fence() -> None:
    assert extract_program("print(1)", NAMES, bare_code=True) == "print(1)"
    assert extract_program("```cpp\nx\n```", NAMES, bare_code=True) is None
    assert extract_program("```python\ncut off", NAMES, bare_code=True) is None
    assert extract_program("  \n", NAMES, bare_code=True) is None
    assert extract_program("<think>x", NAMES, bare_code=True) is None


@given(st.text(alphabet="`~ ap\n<think>/", max_size=60))
def test_extraction_is_total_and_never_empty(text: str) -> None:
    program = extract_program(text, NAMES)
    assert program is None or program.strip()


@given(st.lists(st.text(alphabet="abc \n", max_size=20), min_size=1, max_size=4))
def test_all_fences_are_found_in_order(bodies: list[str]) -> None:
    text = "".join(f"{TICKS}python\n{body}\n{TICKS}\n" for body in bodies)
    assert [fence.code for fence in fences(text)] == [f"{body}\n" for body in bodies]


def test_long_text_of_openings_takes_one_pass() -> None:
    assert extract_program(f"{TICKS}python\n" * 200_000, NAMES) is None
