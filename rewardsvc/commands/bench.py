"""`rewardsvc bench`: what a server does under load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardsvc.cli import fail
from rewardsvc.errors import ConfigError

if TYPE_CHECKING:
    from rewardsvc.bench.measure import Row
    from rewardsvc.bench.roofline import Machine
    from rewardsvc.bench.run import Served
    from rewardsvc.bench.workload import Call

CLOSED_LOADS = "1,4,16,64"
START_TIMEOUT_S = 600.0
DISTINCT_CALLS = 2000
"""Different calls of one process, at least: repeated ones would be answered from the cache."""


def bench(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of a server to start; or give --address.")
    ] = None,
    scorer: Annotated[str, typer.Option(help="Which scorer to call.")] = "",
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running server.")] = None,
    metrics_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of its metrics: queue and compute time, padding.")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help=f"Closed loop: calls in flight, a row for each [{CLOSED_LOADS}]."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: calls a second (Poisson), a row for each.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="Length: N, uniform:LOW:HIGH or lognormal:MEAN:SIGMA.")
    ] = "lognormal:60:0.6",
    completion: Annotated[str, typer.Option(help="The same for completions.")] = (
        "lognormal:120:0.8"
    ),
    unit: Annotated[
        str, typer.Option(help="What lengths count: words (text) or tokens (random ids).")
    ] = "words",
    vocab_size: Annotated[int, typer.Option(min=2, help="For --unit tokens: ids below it.")] = 1000,
    max_length: Annotated[
        int, typer.Option(min=0, help="Cut prompt and completion to this together; 0: do not.")
    ] = 0,
    group_size: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    per_call: Annotated[int, typer.Option(min=1, help="Samples in one call.")] = 1,
    file: Annotated[
        Path | None, typer.Option(help="Recorded samples (JSONL) in place of synthetic ones.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Use ScoreStream.")] = False,
    duration: Annotated[float, typer.Option(min=0.1, help="Measured seconds of each row.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Seconds before, not measured.")] = 3.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a call may take.")] = 60.0,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that make the load.")
    ] = 1,
    parameters: Annotated[
        float | None,
        typer.Option(help="The model's parameters, for the roofline; known with a config."),
    ] = None,
    roofline: Annotated[
        str | None,
        typer.Option(
            help="Measure this machine first: DEVICE or DEVICE:DTYPE (cpu, cuda:bfloat16)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, texts and arrivals.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw latency over throughput to this SVG file.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="REWARDSVC_API_KEY", help="The server's API key.")
    ] = None,
) -> None:
    """Measure a server under load: throughput, latency, and where the time goes."""
    options = {key: value for key, value in locals().items() if key != "api_key"}
    from rich.console import Console

    from rewardsvc.bench.plot import throughput_latency_svg
    from rewardsvc.bench.report import hints, table, write_json
    from rewardsvc.bench.run import Plan, run_sweep
    from rewardsvc.bench.workload import parse_steps
    from rewardsvc.policy_client.client.settings import ClientSettings

    if (config is None) == (address is None):
        fail("give either a configuration file or --address")
    if not scorer:
        fail("--scorer: say which scorer to call")
    if concurrency is not None and rate is not None:
        fail("give either --concurrency (closed loop) or --rate (open loop)")
    load_name = "calls/s" if rate is not None else "in flight"
    out = Console(stderr=True)
    rows: list[Row] = []

    def tell(row: Row) -> None:
        out.print(
            f"{load_name} {row.load:g}: {row.samples_per_s:,.1f} samples/s, "
            f"p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms, "
            f"{row.num_calls - row.num_ok} of {row.num_calls} calls failed"
        )

    try:
        loads = parse_steps(
            rate or concurrency or CLOSED_LOADS, "--rate" if rate else "--concurrency"
        )
        if rate is None:
            loads = [float(max(1, round(load))) for load in loads]
        calls = _calls(options, most=max(loads))
        machine = _measured(roofline)
        ceiling = _ceiling(machine, parameters, config, scorer)
        with _server(options, api_key) as served:
            plan = Plan(
                settings=ClientSettings(addresses=(served.address,), api_key=api_key),
                calls=calls,
                loads=loads,
                open_loop=rate is not None,
                warmup_s=warmup,
                duration_s=duration,
                stream=stream,
                timeout_s=timeout,
                metrics_address=served.metrics_address or None,
                ceiling=ceiling,
                seed=seed,
            )
            rows = run_sweep(plan, tell)
    except (ValueError, OSError, ConfigError, TimeoutError) as error:
        fail(str(error) or "no connection to the server", 1)
    Console().print(table(rows, load_name=load_name))
    if machine is not None:
        out.print(
            f"{machine.device}, {machine.dtype}: {machine.gemm_flops / 1e9:,.0f} GFLOP/s in matrix "
            f"products, {machine.bandwidth / 1e9:,.1f} GB/s"
        )
    for hint in hints(rows):
        out.print(f"note: {hint}")
    if json_file is not None:
        write_json(json_file, rows, options=_written(options), machine=machine)
    if plot is not None:
        svg = throughput_latency_svg(rows, title=f"{scorer} under load", load_name=load_name)
        if svg is not None:
            plot.write_text(svg, encoding="utf-8")
    if not any(row.samples_per_s > 0 for row in rows):
        fail("no sample was scored", 1)


def _calls(options: dict[str, Any], *, most: float) -> list[list[Call]]:
    """What each process sends; all different, and different in each."""
    from rewardsvc.bench.workload import (
        Lengths,
        Shape,
        Unit,
        calls,
        recorded_samples,
        synthetic_samples,
    )

    num_calls = max(DISTINCT_CALLS, 4 * int(most)) // options["per_call"] + 1
    recorded = recorded_samples(options["file"]) if options["file"] is not None else None
    made = []
    for number in range(options["processes"]):
        if recorded is not None:
            start = number * len(recorded) // options["processes"]
            samples: Any = recorded[start:] + recorded[:start]
        else:
            samples = synthetic_samples(
                Shape(
                    prompt=Lengths.parse(options["prompt"]),
                    completion=Lengths.parse(options["completion"]),
                    unit=Unit(options["unit"]),
                    group_size=options["group_size"],
                    vocab_size=options["vocab_size"],
                    max_length=options["max_length"],
                    seed=options["seed"] + number,
                )
            )
        made.append(
            calls(options["scorer"], samples, num_calls=num_calls, per_call=options["per_call"])
        )
    return made


@contextlib.contextmanager
def _server(options: dict[str, Any], api_key: str | None) -> Iterator[Served]:
    from rewardsvc.bench.run import Served, serving

    if options["address"] is not None:
        metrics = options["metrics_address"] or ""
        yield Served(address=options["address"], metrics_address=metrics)
        return
    with serving(
        options["config"], scorer=options["scorer"], timeout_s=START_TIMEOUT_S, api_key=api_key
    ) as served:
        yield served


def _measured(roofline: str | None) -> Machine | None:
    """This machine's ceilings, before the load starts."""
    if roofline is None:
        return None
    from rewardsvc.bench.roofline import measure

    device, _, dtype = roofline.partition(":")
    on_gpu = device.startswith("cuda")
    if dtype.isdigit():  # cuda:1, cuda:1:bfloat16
        index, _, dtype = roofline.partition(":")[2].partition(":")
        device = f"{device}:{index}"
    if device not in ("cpu", "cuda") and not on_gpu:
        raise ValueError(f"--roofline: {roofline!r}: write cpu, cuda or cuda:bfloat16")
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--roofline: {dtype!r} is not float32, bfloat16 or float16")
    return measure("cuda:0" if device == "cuda" else device, dtype)


def _ceiling(
    machine: Machine | None, parameters: float | None, config: Path | None, scorer: str
) -> tuple[Machine, float] | None:
    if machine is None:
        return None
    if parameters is None and config is not None:
        from rewardsvc.bench.roofline import matrix_parameters
        from rewardsvc.config import load_config

        model = getattr(load_config(config).scorers.get(scorer), "model", None)
        parameters = matrix_parameters(config.resolve().parent / model) if model else None
    return (machine, parameters) if parameters else None


def _written(options: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
