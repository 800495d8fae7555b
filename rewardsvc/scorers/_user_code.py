"""Finds the function that a configuration names, and turns what it returns into scores."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rewardsvc.errors import ConfigError, ItemErrorCode
from rewardsvc.scoring.types import Score

_MAX_SHOWN_NAMES = 20
_MAX_SHOWN_CHARS = 80


def load_function(target: str, base_dir: Path) -> Callable[..., Any]:
    """The function of "package.module:function" or "file.py:function".

    A file is looked for from `base_dir` and executed anew each time, so that a reload sees its
    changes; its neighbours are not importable unless `PYTHONPATH` says so.

    Raises:
        ConfigError: If the module does not import or has no such function; names what it has.
    """
    where, colon, name = target.rpartition(":")
    if not (colon and where and name):
        raise ConfigError(f"function: {target!r} should read module:function or file.py:function")
    try:
        module = _load_file(base_dir / where) if where.endswith(".py") else _import(where)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"function: importing {where!r} raised {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"function: {where!r} has no {name!r}; it has {_callables(module)}")
    if not callable(function):
        raise ConfigError(f"function: {target!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def source_digest(function: Callable[..., Any]) -> str:
    """A short digest of the file that defines the function; empty for one that no file defines."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if path is None or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ConfigError(
            f"function: no module {error.name!r}; install it, or give file.py:function with the "
            "file beside the configuration"
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        found = sorted(file.name for file in path.parent.glob("*.py"))[:_MAX_SHOWN_NAMES]
        raise ConfigError(f"function: no file {str(path)!r}; in its folder: {found or 'no .py'}")
    name = f"_rewardsvc_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _callables(module: ModuleType) -> str:
    names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    return ", ".join(names[:_MAX_SHOWN_NAMES]) or "no public functions"


def score_of_result(result: object) -> Score:
    """The score that one result of a user's function means.

    A number is the value. A mapping has "score", may have "explanation", and its other numbers are
    components; the rest of it is ignored. A `Score` is itself. Anything else is SCORER_EXCEPTION,
    and a number that is not finite NON_FINITE: nothing is ever taken for 0.
    """
    if isinstance(result, Score):
        return result
    if not isinstance(result, Mapping):
        return _score_of_number(result)
    if "score" not in result:
        return _malformed(f"a dict without 'score': {sorted(map(str, result))}")
    score = _score_of_number(result["score"])
    if score.value is None:
        return score
    numbers = {str(k): as_number(v) for k, v in result.items() if k != "score"}
    components = {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
    explanation = result.get("explanation")
    return Score(
        value=score.value,
        components=components,
        explanation=explanation if isinstance(explanation, str) else "",
    )


def scores_of_batch(result: object, num_samples: int) -> list[Score]:
    """The scores that the result of a batched function means; it must be one entry a sample."""
    if hasattr(result, "tolist"):  # an array or a tensor
        result = result.tolist()
    if not isinstance(result, Sequence) or isinstance(result, str | bytes):
        return [_malformed(f"{_shown(result)}, not a list of {num_samples}")] * num_samples
    if len(result) != num_samples:
        message = f"{len(result)} results for {num_samples} samples"
        return [_malformed(message)] * num_samples
    return [score_of_result(entry) for entry in result]


def as_number(value: object) -> float | None:
    """`value` as a float if it is one number, of Python, numpy or torch; else None."""
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except Exception:  # the value's own method, for instance of a tensor with many elements
        return None


def _score_of_number(value: object) -> Score:
    if value is None:
        return _malformed("None: no reward for this sample")
    number = as_number(value)
    return _malformed(f"{_shown(value)}, not a number") if number is None else Score.of(number)


def _malformed(what: str) -> Score:
    return Score.failed(ItemErrorCode.SCORER_EXCEPTION, f"the function returned {what}")


def _shown(value: object) -> str:
    if isinstance(value, str | bytes | int | float):
        return f"{value!r:.{_MAX_SHOWN_CHARS}}"
    return f"a {type(value).__name__}"
