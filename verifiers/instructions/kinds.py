"""The table of kinds: IFEval's name → check and parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rewardsvc.verifiers.instructions import layout, wording
from rewardsvc.verifiers.instructions import parameters as p
from rewardsvc.verifiers.language import language_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of instruction.

    Attributes:
        check: Takes the response and the parameters; returns what is amiss, or "".
        params: Name of a parameter → what reads its value.
        optional: Names of parameters that may be left out.
    """

    check: Callable[..., str]
    params: Mapping[str, p.Reader] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


def _language(value: object) -> str:
    code = p.text(value)
    language_share("", code)
    return code


KINDS: dict[str, Kind] = {
    "keywords:existence": Kind(check=wording.keywords_exist, params={"keywords": p.keywords}),
    "keywords:frequency": Kind(
        check=wording.keyword_frequency,
        params={"keyword": p.keyword, "frequency": p.count, "relation": p.relation},
    ),
    "keywords:forbidden_words": Kind(
        check=wording.no_forbidden_words, params={"forbidden_words": p.keywords}
    ),
    "keywords:letter_frequency": Kind(
        check=wording.letter_frequency,
        params={"letter": p.letter, "let_frequency": p.count, "let_relation": p.relation},
    ),
    "language:response_language": Kind(
        check=wording.response_language, params={"language": _language}
    ),
    "length_constraints:number_words": Kind(
        check=wording.number_words, params={"num_words": p.count, "relation": p.relation}
    ),
    "length_constraints:number_sentences": Kind(
        check=wording.number_sentences, params={"num_sentences": p.count, "relation": p.relation}
    ),
    "length_constraints:number_paragraphs": Kind(
        check=layout.number_paragraphs, params={"num_paragraphs": p.count}
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        check=wording.nth_paragraph_first_word,
        params={
            "num_paragraphs": p.count,
            "nth_paragraph": p.position,
            "first_word": p.keyword,
        },
    ),
    "detectable_content:number_placeholders": Kind(
        check=layout.number_placeholders, params={"num_placeholders": p.count}
    ),
    "detectable_content:postscript": Kind(
        check=layout.postscript, params={"postscript_marker": p.keyword}
    ),
    "detectable_format:number_bullet_lists": Kind(
        check=layout.number_bullet_lists, params={"num_bullets": p.count}
    ),
    "detectable_format:number_highlighted_sections": Kind(
        check=layout.number_highlighted_sections, params={"num_highlights": p.count}
    ),
    "detectable_format:multiple_sections": Kind(
        check=layout.multiple_sections,
        params={"section_spliter": p.keyword, "num_sections": p.count},
    ),
    "detectable_format:json_format": Kind(check=layout.json_format),
    "detectable_format:title": Kind(check=layout.title),
    "detectable_format:constrained_response": Kind(
        check=wording.constrained_response,
        params={"options": p.keywords},
        optional=frozenset({"options"}),
    ),
    "combination:two_responses": Kind(check=layout.two_responses),
    "combination:repeat_prompt": Kind(
        check=wording.repeats_prompt, params={"prompt_to_repeat": p.text}
    ),
    "startend:start_checker": Kind(check=wording.starts_with, params={"start_phrase": p.text}),
    "startend:end_checker": Kind(check=wording.ends_with, params={"end_phrase": p.text}),
    "startend:quotation": Kind(check=layout.quotation),
    "change_case:capital_word_frequency": Kind(
        check=wording.capital_word_frequency,
        params={"capital_frequency": p.count, "capital_relation": p.relation},
    ),
    "change_case:english_capital": Kind(check=wording.english_capital),
    "change_case:english_lowercase": Kind(check=wording.english_lowercase),
    "punctuation:no_comma": Kind(check=wording.no_comma),
}
"""IFEval's twenty-five, and `startend:start_checker`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, checked and ready.

    Attributes:
        kind: A key of `KINDS`.
        params: Its parameters, read.
    """

    kind: str
    params: Mapping[str, object]

    def problem(self, response: str) -> str:
        """What keeps `response` from following it; "" if nothing does."""
        return KINDS[self.kind].check(response, **self.params)


def read_instruction(kind: object, params: object) -> Instruction:
    """An instruction from what a data set says.

    Args:
        kind: A key of `KINDS`.
        params: A mapping; entries that are None count as left out, as data sets fill up all
            columns.

    Raises:
        ValueError: If the kind is not known, or a parameter is missing, unknown or malformed.
    """
    spec = KINDS.get(kind) if isinstance(kind, str) else None
    if spec is None:
        close = difflib.get_close_matches(str(kind)[:80], KINDS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(KINDS))}"
        raise ValueError(f"kind is {p.shown(kind)}; {hint}")
    if not isinstance(params, Mapping | None):
        raise ValueError(f"{kind}: params is {p.shown(params)}; give a mapping")
    given = {name: value for name, value in (params or {}).items() if value is not None}
    unknown = [name for name in given if name not in spec.params]
    if unknown:
        known = ", ".join(spec.params) or "none"
        raise ValueError(f"{kind}: unknown parameter {p.shown(unknown[0])}; it takes {known}")
    missing = [name for name in spec.params if name not in given and name not in spec.optional]
    if missing:
        raise ValueError(f"{kind}: {missing[0]} is missing")
    read = {}
    for name, value in given.items():
        try:
            read[name] = spec.params[name](value)
        except ValueError as error:
            raise ValueError(f"{kind}: {name} is {error}") from error
    return Instruction(kind=str(kind), params=read)
