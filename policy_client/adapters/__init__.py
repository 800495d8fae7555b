"""Verifiers and scorers as the reward functions of trainers that are not ours.

    trl                 TRL, Unsloth, whatever else calls `f(prompts, completions, **columns)`
    verl                verl's `compute_score`, one sample or a batch
    openrlhf            OpenRLHF's `reward_func(queries, prompts, labels)`
    prime_intellect     rubric functions of Prime Intellect's verifiers

Each takes a source of rewards: a verifier of `rewardsvc.verifiers`, a function of one's own whose
parameters are named for what it needs, or `RewardClient(…).reward_function("scorer")`. None imports
its trainer, and none imports torch before the first reward.

No reward is not a zero. Where a trainer can leave a completion out, it is told to; where all it
takes is a number, `on_missing` decides.
"""
