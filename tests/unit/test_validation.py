"""What is wrong with a configuration, in words; and the YAML that it comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewardsvc.errors import ConfigError
from rewardsvc.validation import explain
from rewardsvc.yaml_file import read_yaml


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Adapters(Section):
    rank: int = Field(default=1, ge=1, description="Width of the adapters.")


class Local(Section):
    type: Literal["local"] = "local"
    folder: str = Field(description="Where it lies.")


class Remote(Section):
    type: Literal["remote"] = "remote"
    address: str = Field(default="", max_length=9)
    timeout_s: float = 1.0


class Whole(Section):
    adapters: Adapters | None = Field(default=None, description="Low-rank ones.")
    source: Annotated[Local | Remote, Field(discriminator="type")] = Remote()
    parts: list[Adapters] = []
    named: dict[str, Adapters] = {}
    settings: int = Field(default=0, alias="config", description="Under its other name.")

    @model_validator(mode="after")
    def _fits(self) -> Whole:
        if self.settings == 13:
            raise ValueError("config is 13; take another")
        return self


def said(data: object, prefix: str = "") -> list[str]:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(data)
    return explain(error.value, Whole, prefix)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"adaptors": 1}, "adaptors: unknown field, set to 1; did you mean 'adapters'?"),
        (
            {"qqq": 1},
            "qqq: unknown field, set to 1; known: adapters, config, named, parts, source",
        ),
        (
            {"adapters": {"rnk": 2}},
            "adapters.rnk: unknown field, set to 2; did you mean 'rank'?",
        ),
        ({"parts": [{}, {"rnk": 2}]}, "parts.1.rnk: unknown field, set to 2; did you mean 'rank'?"),
        ({"named": {"a": {"rnk": 2}}}, None),
        (
            {"source": {"type": "remote", "timeout": 2}},
            "source.remote.timeout: unknown field, set to 2; did you mean 'timeout_s'?",
        ),
        ({"source": {"type": "local"}}, "source.local.folder: missing; Where it lies."),
        (
            {"adapters": {"rank": 0}},
            "adapters.rank: Input should be greater than or equal to 1 (found 0); "
            "Width of the adapters.",
        ),
        (
            {"config": "x"},
            "config: Input should be a valid integer, unable to parse string as an integer "
            "(found 'x'); Under its other name.",
        ),
        ({"config": 13}, "config is 13; take another"),
    ],
)
def test_a_mistake_has_its_field_its_value_and_a_way_out(data: object, line: str | None) -> None:
    if line is None:
        (found,) = said(data)
        assert found.startswith("named.a.rnk: unknown field, set to 2; ")
    else:
        assert said(data) == [line]


def test_every_mistake_has_a_line_and_long_values_are_cut() -> None:
    first, second = said({"qqq": 1, "source": {"type": "remote", "address": "x" * 999}}, "a.b")
    assert first.startswith("a.b.source.remote.address: ")
    assert len(first) < 200
    assert second.startswith("a.b.qqq: unknown field")
    assert said({"config": 13}, "a.b") == ["a.b: config is 13; take another"]


def read(folder: Path, text: str) -> object:
    file = folder / "some.yaml"
    file.write_text(text)
    return read_yaml(file)


def test_numbers_without_a_point_are_numbers_and_texts_stay_texts(tmp_path: Path) -> None:
    assert read(tmp_path, "[1e-5, 1.5e3, -2E+4, '1e-5', 1e, e5, 12]") == [
        1e-5, 1500.0, -20000.0, "1e-5", "1e", "e5", 12
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "'c' is given twice"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_what_plain_yaml_lets_pass_or_breaks_on_is_an_error(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, text)
    assert "some.yaml" in str(error.value)


def test_merged_mappings_may_change_a_key(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}"
    assert read(tmp_path, text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
    }


def test_merges_go_by_what_keys_say(tmp_path: Path) -> None:
    text = (
        "first: &first {length: 1, shared: first}\n"
        "second: &second {length: 2, width: 2, shared: second}\n"
        "both: &both {<<: [*first, *second], shared: own}\n"
        "again: {<<: *both, width: 3}"
    )
    found = read(tmp_path, text)
    assert found["both"] == {"length": 1, "width": 2, "shared": "own"}
    assert found["again"] == {"length": 1, "width": 3, "shared": "own"}


@pytest.mark.parametrize("merged", ["1", "[1]", "[{a: 1}, text]"])
def test_only_mappings_can_be_merged(merged: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)not valid YAML.*mappings to merge"):
        read(tmp_path, f"a: {{<<: {merged}}}")


def test_configurations_are_checked_without_torch() -> None:
    code = (
        "import sys, rewardsvc.policy_client.train.config_base; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
