"""Judges programs by tests, in the sandbox."""

from rewardsvc.verifiers.code.asserts import AssertTests
from rewardsvc.verifiers.code.cases import CallCase, StdioCase
from rewardsvc.verifiers.code.checker import Checker
from rewardsvc.verifiers.code.compare import Numbers, Sequences, ValueComparison
from rewardsvc.verifiers.code.document import parse_tests
from rewardsvc.verifiers.code.extract import extract_program
from rewardsvc.verifiers.code.function import FunctionTests
from rewardsvc.verifiers.code.interactive import InteractiveTests
from rewardsvc.verifiers.code.stdio import StdioTests
from rewardsvc.verifiers.code.suite import Tests
from rewardsvc.verifiers.code.text import TextComparison, Whitespace
from rewardsvc.verifiers.code.verdict import CodeVerdict, TestResult
from rewardsvc.verifiers.code.verifier import CodeVerifier, Credit

__all__ = [
    "AssertTests",
    "CallCase",
    "Checker",
    "CodeVerdict",
    "CodeVerifier",
    "Credit",
    "FunctionTests",
    "InteractiveTests",
    "Numbers",
    "Sequences",
    "StdioCase",
    "StdioTests",
    "TestResult",
    "Tests",
    "TextComparison",
    "ValueComparison",
    "Whitespace",
    "extract_program",
    "parse_tests",
]
