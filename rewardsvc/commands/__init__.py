"""The verbs of the command line, one module each."""

import typer

from rewardsvc.commands.bench import bench
from rewardsvc.commands.doctor import doctor
from rewardsvc.commands.evaluate import add_evaluate_commands
from rewardsvc.commands.export_onnx import export_onnx
from rewardsvc.commands.report import report
from rewardsvc.commands.score import score
from rewardsvc.commands.serve import serve
from rewardsvc.commands.train import add_train_commands

app = typer.Typer(
    name="rewardsvc",
    help="The reward oracle of RL post-training as a service, and trainers that learn from it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve)
app.command()(score)
add_train_commands(app)
add_evaluate_commands(app)
app.command()(report)
app.command()(export_onnx)
app.command()(bench)
app.command()(doctor)
