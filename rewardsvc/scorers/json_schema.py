"""`json_schema`: is the completion one JSON document that a schema allows?

Without a schema of its own it reads `metadata.schema`, an object or JSON text.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.json_schema import JsonSchema as JsonSchemaVerifier


class JsonSchemaConfig(ScorerConfigBase):
    """`{type: json_schema, json_schema: {type: object, required: [name]}}`.

    Attributes:
        json_schema: For all samples; left out where each brings its own.
    """

    type: Literal["json_schema"]
    json_schema: dict[str, Any] | None = None

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, json_schema: dict[str, Any] | None) -> dict[str, Any] | None:
        JsonSchemaVerifier(schema=json_schema)
        return json_schema


class JsonSchema(JudgedScorer):
    """1.0 if the schema allows the document, else 0.0 and where it does not."""

    Config = JsonSchemaConfig

    def __init__(self, config: JsonSchemaConfig, env: BuildEnv) -> None:
        super().__init__(JsonSchemaVerifier(schema=config.json_schema), env)
