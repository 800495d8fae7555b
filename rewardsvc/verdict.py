"""How a verifier judged an answer: the word that service and client share."""

from enum import StrEnum


class Verdict(StrEnum):
    """How a verifier judged an answer. Each of these is a reward, not an error."""

    ACCEPTED = "accepted"
    WRONG_ANSWER = "wrong_answer"
    NO_ANSWER = "no_answer"
    RUNTIME_ERROR = "runtime_error"
    COMPILE_ERROR = "compile_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    PARTIAL = "partial"
