"""What is measured: models, bases and data sets as hub ids, and the figures that were published of them.

Models and data are those of ImPart (arXiv 2504.13237, github.com/sustech-nlp/ImPart; WizardCoder's id is the one its
evaluation names).  Published figures are of its table of quantised methods at a compression ratio of 32, so 1/64 of
fp32; they are copied from there, and nothing here measured them.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.published.hub import Data

PUBLISHED_SHARE = 1 / 64  # of fp32


@dataclass(frozen=True)
class Model:
    """A fine-tune and its base as hub ids.  prompt: of `prompts.STYLES`, or "chat"."""

    name: str
    finetuned: str
    base: str
    prompt: str


@dataclass(frozen=True)
class Score:
    """One model on one benchmark.  metric: what the published figure is, in %."""

    name: str
    model: Model
    benchmark: str
    metric: str


WIZARD_MATH = Model("WizardMath-13B", "vanillaOVO/WizardMath-13B-V1.0", "meta-llama/Llama-2-13b-hf", "steps")
WIZARD_CODER = Model(
    "WizardCoder-13B", "WizardLMTeam/WizardCoder-Python-13B-V1.0", "codellama/CodeLlama-13b-hf", "script"
)
CHAT_13B = Model("LLaMA2-Chat-13B", "meta-llama/Llama-2-13b-chat-hf", "meta-llama/Llama-2-13b-hf", "chat")
CHAT_7B = Model("LLaMA2-Chat-7B", "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf", "chat")
LLAMA_3 = Model("LLaMA3-Inst-8B", "meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B", "chat")

SCORES = {
    score.name: score
    for score in (
        Score("wizardmath-gsm8k", WIZARD_MATH, "gsm8k", "exact match"),
        Score("wizardmath-math", WIZARD_MATH, "math", "exact match"),
        Score("wizardcoder-humaneval", WIZARD_CODER, "humaneval", "pass@1"),
        Score("wizardcoder-mbpp", WIZARD_CODER, "mbpp", "pass@1"),
        Score("chat13b-ifeval", CHAT_13B, "ifeval", "loose prompts followed"),
        Score("chat13b-alpacaeval", CHAT_13B, "alpacaeval", "win rate"),
        Score("chat7b-ifeval", CHAT_7B, "ifeval", "loose prompts followed"),
        Score("chat7b-alpacaeval", CHAT_7B, "alpacaeval", "win rate"),
        Score("llama3-ifeval", LLAMA_3, "ifeval", "loose prompts followed"),
        Score("llama3-alpacaeval", LLAMA_3, "alpacaeval", "win rate"),
    )
}

# of the benchmarks: where the questions are.  MBPP are the 378 tasks of EvalPlus with their first tests
DATA = {
    "gsm8k": [Data("openai/gsm8k", "main")],
    "math": [
        Data("EleutherAI/hendrycks_math", subject)
        for subject in (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        )
    ],
    "humaneval": [Data("openai/openai_humaneval")],
    "mbpp": [Data("evalplus/mbppplus")],
    "ifeval": [Data("google/IFEval", split="train")],
    "alpacaeval": [Data("tatsu-lab/alpaca_eval", "alpaca_eval", "eval")],
}

PUBLISHED = {  # of the ten scores, in the order above
    "base (published)": (17.80, 3.90, 32.32, 62.70, 19.04, 0.71, 20.52, 0.10, 11.46, 0.08),
    "fine-tune (published)": (63.96, 14.10, 59.76, 67.70, 33.64, 18.39, 31.79, 15.63, 48.80, 32.13),
    "BitDelta (published)": (61.11, 12.12, 51.83, 58.50, 25.32, 18.30, 27.36, 11.87, 34.38, 26.35),
    "DARE-Qt (published)": (62.17, 13.40, 57.32, 67.70, 30.87, 17.68, 29.76, 11.76, 42.33, 28.24),
    "Delta-CoMe (published)": (62.40, 12.56, 56.71, 68.30, 27.91, 15.52, 29.39, 10.85, 41.40, 26.64),
    "ImPart-Qt (published)": (64.29, 13.54, 58.54, 68.50, 30.87, 17.65, 29.76, 12.55, 45.84, 28.27),
}
