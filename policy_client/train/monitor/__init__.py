"""Watches a run for reward hacking and collapse, and says or does something about it.

Theory of operation. Every step gives numbers: the trainer's metrics, and statistics of the texts
that the policy wrote (`text_stats`). A `Rule` compares one number with a threshold, absolute or
relative to the run's own first steps, and trips after some steps on the wrong side. It stays
tripped until the number is back behind a second, easier threshold (hysteresis): a metric that
trembles at the line gives one alarm, not fifty. An alarm has an action: warn, raise the KL
coefficient, stop, or roll back to the last checkpoint from before the trouble. What a rule means
and what to try is part of the rule, in plain words, and the report shows it.
"""

from rewardsvc.policy_client.train.monitor.config import MonitorConfig
from rewardsvc.policy_client.train.monitor.rules import Action, Alarm, Rule, RuleState, Versus
from rewardsvc.policy_client.train.monitor.table import RULES
from rewardsvc.policy_client.train.monitor.text_stats import TextStats, text_stats
from rewardsvc.policy_client.train.monitor.watch import PolicyCollapsedError, Watch

__all__ = [
    "RULES",
    "Action",
    "Alarm",
    "MonitorConfig",
    "PolicyCollapsedError",
    "Rule",
    "RuleState",
    "TextStats",
    "Versus",
    "Watch",
    "text_stats",
]
