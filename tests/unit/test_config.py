"""Configuration files: what they may say, and what a mistake is answered with."""

from pathlib import Path

import pytest

from rewardsvc.config import ServiceConfig, build_order, load_config, parse_scorers
from rewardsvc.errors import ConfigError


def load(tmp_path: Path, text: str) -> ServiceConfig:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_smallest_file_has_defaults_for_everything_else(tmp_path: Path) -> None:
    config = load(tmp_path, "scorers: {math: {type: math}}")
    assert list(config.scorers) == ["math"]
    assert config.server.port == 50051
    assert config.server.host == "127.0.0.1"
    assert not config.server.admin.enabled


def test_scorers_written_in_place_get_names_of_their_own(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
scorers:
  math: {type: math}
  rlvr:
    type: sum
    of:
      math: 1.0
      think: {type: format, preset: think, weight: 0.1}
  bounded: {type: clip, min: -1, max: 1, of: {type: product, of: [math, {type: exact}]}}
""",
    )
    assert set(config.scorers) == {
        "math",
        "rlvr",
        "rlvr/think",
        "bounded",
        "bounded/product",
        "bounded/product/1",
    }
    assert config.scorers["rlvr"].children() == ("math", "rlvr/think")
    assert config.scorers["rlvr"].of == {"math": 1.0, "rlvr/think": 0.1}  # type: ignore[attr-defined]
    assert config.scorers["bounded/product"].children() == ("math", "bounded/product/1")


def test_children_are_built_before_parents_whatever_the_order(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
scorers:
  top: {type: sum, of: {middle: 1}}
  middle: {type: sum, of: {leaf: 1}}
  leaf: {type: math}
""",
    )
    assert build_order(config.scorers) == ["leaf", "middle", "top"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("scorers: {m: {type: maths}}", ["scorers.m.type", "'maths'", "did you mean 'math'"]),
        ("scorers: {m: {}}", ["scorers.m.type", "missing"]),
        ("scorers: {m: 3}", ["scorers.m", "3"]),
        ("scorers: {}", ["scorers", "at least one"]),
        ("[]", ["mapping"]),
        (
            "scorers: {m: {type: math, tmie_limit_s: 3}}",
            ["scorers.m.tmie_limit_s", "unknown field"],
        ),
        ("scorers: {s: {type: sum, of: {nope: 1}}}", ["scorers.s.of", "'nope'", "the file has s"]),
        (
            "scorers: {a: {type: sum, of: {b: 1}}, b: {type: sum, of: {a: 1}}}",
            ["a -> b -> a", "built on itself"],
        ),
        ("scorers: {'a/b': {type: math}}", ["'a/b'", "cannot be a name"]),
        ("scorers: {m: {type: math}, m: {type: exact}}", ["'m' is given twice", "line 1"]),
        ("server: {port: 70000}\nscorers: {m: {type: math}}", ["server.port", "65535", "70000"]),
        ("server: {prot: 1}\nscorers: {m: {type: math}}", ["server.prot", "unknown field"]),
        ("engine: {max_batch_tokens: 0}\nscorers: {m: {type: math}}", ["engine.max_batch_tokens"]),
        ("scorers: {m: {type: math", ["not valid YAML"]),
        ("scorers: {c: {type: clip, of: {type: math}, min: 2, max: 1}}", ["scorers.c"]),
    ],
)
def test_a_mistake_is_named_by_field_and_value(tmp_path: Path, text: str, parts: list[str]) -> None:
    said = complaint(tmp_path, text)
    assert "config.yaml" in said
    for part in parts:
        assert part in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"# caf\xe9\nscorers: {}")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 5"):
        load_config(file)


def test_a_secret_that_failed_to_arrive_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(tmp_path, "server: {api_key_env: RS_KEY}\nscorers: {m: {type: math}}")
    monkeypatch.delenv("RS_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"server\.api_key_env: .*'RS_KEY' is unset"):
        config.server.secret(config.server.api_key_env, "server.api_key_env")
    monkeypatch.setenv("RS_KEY", "s3cret")
    assert config.server.secret(config.server.api_key_env, "server.api_key_env") == "s3cret"


def test_sections_that_choose_code_say_so() -> None:
    configs = parse_scorers("p", {"type": "python", "function": "m:f"})
    assert configs["p"].runs_code_of_the_config()
    assert not parse_scorers("m", {"type": "math"})["m"].runs_code_of_the_config()
