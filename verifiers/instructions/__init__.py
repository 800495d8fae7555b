"""Instructions whose following a program can check, in the manner of IFEval.

    instructions    a kind and its parameters, read and checked
    counting        words, sentences, paragraphs, letters, keywords
    wording         checks of what is written
    layout          checks of how it is laid out
    kinds           the table: name of a kind → check and parameters
    verifier        `InstructionFollowing`

Kinds and parameters have IFEval's names, so that its data set and those made in its likeness work
as they are. What is checked is written anew: keywords are literal text and whole words, every check
takes linear time, and an empty response follows nothing.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911.
"""

from rewardsvc.verifiers.instructions.verifier import Credit, InstructionFollowing, Reading

__all__ = ["Credit", "InstructionFollowing", "Reading"]
