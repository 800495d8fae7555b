"""The rules that every run starts with.

Thresholds are loose: an alarm should be worth reading. All of them warn; what else an alarm should
do is for the configuration to say (`monitor: {rules: {proxy_gap: {action: stop}}}`).
"""

from __future__ import annotations

from rewardsvc.policy_client.train.monitor.rules import Rule, Versus

PROXY_GAP = "watch/proxy_gap"
BIMODALITY = "watch/reward_bimodality"

RULES: tuple[Rule, ...] = (
    Rule(
        name="proxy_gap",
        metric=PROXY_GAP,
        above=4.0,
        clear=1.0,
        patience=3,
        meaning="The reward rises while the held-out truth falls: the policy exploits the reward.",
        advice="Go back to the checkpoint before it, raise kl_coef, or mend the reward.",
    ),
    Rule(
        name="length_growth",
        metric="completions/mean_length",
        above=2.5,
        clear=1.8,
        versus=Versus.BASELINE,
        meaning="Completions have become far longer than at the start.",
        advice="Look whether longer is better or only scores better; add a length penalty.",
    ),
    Rule(
        name="length_collapse",
        metric="completions/mean_length",
        below=0.25,
        clear=0.4,
        versus=Versus.BASELINE,
        meaning="Completions have become far shorter than at the start.",
        advice="See whether the reward pays for short answers; raise kl_coef.",
    ),
    Rule(
        name="cut_off",
        metric="completions/clipped_ratio",
        above=0.5,
        clear=0.3,
        patience=5,
        meaning="Half of the completions hit the length limit and are judged unfinished.",
        advice="Raise max_new_tokens, or use a soft overlong penalty.",
    ),
    Rule(
        name="repetition",
        metric="text/repeated_ngrams",
        above=0.5,
        clear=0.3,
        meaning="Half of what completions say, they have said before.",
        advice="Penalise repetition in the reward; raise kl_coef.",
    ),
    Rule(
        name="identical_completions",
        metric="text/identical",
        above=0.9,
        clear=0.7,
        patience=5,
        meaning="Nearly all prompts get the same answer: the policy has collapsed.",
        advice="Go back, lower learning_rate, raise kl_coef, or add an entropy bonus.",
    ),
    Rule(
        name="same_text",
        metric="text/self_bleu",
        above=0.95,
        clear=0.85,
        patience=5,
        meaning="Completions of different prompts say nearly the same.",
        advice="Look at samples: the policy may ignore the prompt. Raise kl_coef.",
    ),
    Rule(
        name="same_opening",
        metric="text/identical_openings",
        above=0.9,
        clear=0.7,
        patience=10,
        meaning="Nearly all completions begin with the same words.",
        advice="A format that is asked for does this too; otherwise raise kl_coef.",
    ),
    Rule(
        name="less_variety",
        metric="text/distinct_2",
        below=0.25,
        clear=0.4,
        versus=Versus.BASELINE,
        patience=5,
        meaning="Far fewer different pairs of words are used than at the start.",
        advice="Add an entropy bonus, lower learning_rate, or raise kl_coef.",
    ),
    Rule(
        name="refusals",
        metric="text/refusals",
        above=0.3,
        clear=0.15,
        meaning="Many completions refuse.",
        advice="See whether refusing scores well; weigh helpfulness against safety anew.",
    ),
    Rule(
        name="empty",
        metric="text/empty",
        above=0.2,
        clear=0.1,
        meaning="Many completions are empty.",
        advice="See what an empty completion is paid; raise kl_coef.",
    ),
    Rule(
        name="flat_groups",
        metric="frac_reward_zero_std",
        above=0.95,
        clear=0.8,
        patience=10,
        meaning="In nearly every group all rewards are equal, and nothing can be learned.",
        advice="Use harder or easier prompts, dynamic sampling, or a finer reward.",
    ),
    Rule(
        name="entropy_collapse",
        metric="entropy",
        below=0.1,
        clear=0.2,
        versus=Versus.BASELINE,
        patience=5,
        meaning="The policy hardly explores any more.",
        advice="Add an entropy bonus, raise clip_eps_high, or lower learning_rate.",
    ),
    Rule(
        name="entropy_explosion",
        metric="entropy",
        above=4.0,
        clear=2.5,
        versus=Versus.BASELINE,
        meaning="The policy has become far more random than at the start.",
        advice="Lower learning_rate or the entropy bonus; look for rewards that are noise.",
    ),
    Rule(
        name="kl_runaway",
        metric="kl",
        above=1.0,
        clear=0.5,
        meaning="Token by token the policy is far from the reference.",
        advice="Raise kl_coef, or lower learning_rate.",
    ),
    Rule(
        name="disagreement",
        metric="watch/disagreement",
        above=2.5,
        clear=1.7,
        versus=Versus.BASELINE,
        patience=5,
        meaning="The members of the reward ensemble disagree far more than at the start.",
        advice="The policy is where they know nothing: penalise deviation, or label new data.",
    ),
    Rule(
        name="two_heaps",
        metric=BIMODALITY,
        above=0.9,
        clear=0.8,
        patience=10,
        meaning="Graded rewards have split into two heaps.",
        advice="Look at samples of both: some completions may have found a trick.",
    ),
)
"""See each rule's `meaning` and `advice`."""
