"""An unbatched loop in the manner of OpenRLHF's `serve_rm`: each request is one forward pass.

Source: https://github.com/OpenRLHF/OpenRLHF (openrlhf/cli/serve_rm.py): a FastAPI handler that
tokenises, runs the model and answers, all in the event loop.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from peer_model import Model


def main() -> None:
    """Serves until it is killed."""
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    given = options.parse_args()
    model, app = Model(), FastAPI()

    async def get_reward(request: Request) -> dict[str, Any]:
        queries = (await request.json())["query"]
        scores = model.score(queries)
        return {"rewards": scores, "scores": scores}

    get_reward.__annotations__["request"] = Request  # FastAPI cannot resolve names of a function
    app.post("/get_reward")(get_reward)
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    sys.exit(main())
