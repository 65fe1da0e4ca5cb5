"""vLLM's engine in a process of its own: ``python engine.py JOB RESULT``, both JSON.

A job has ``options`` of `vllm.LLM`, and ``batches``: each a list of {"prompt": token ids, "task": name, "path": of its
LoRA, null for the base}, all in the engine at once.  The result has, a request, its tokens and their logprobs.
"""

import json
import sys


def answer(llm, batch: list[dict], numbers: dict[str, int], tokens: int, prompt_logprobs: int | None) -> list[dict]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    sampling = SamplingParams(
        temperature=0, max_tokens=tokens, logprobs=0, ignore_eos=True, prompt_logprobs=prompt_logprobs, detokenize=False
    )
    loras = []
    for one in batch:
        number = numbers.setdefault(one["task"], len(numbers) + 1) if one["task"] else 0
        loras.append(LoRARequest(one["task"], number, one["path"]) if number else None)
    prompts = [{"prompt_token_ids": one["prompt"]} for one in batch]
    found = llm.generate(prompts, sampling, lora_request=loras if any(loras) else None, use_tqdm=False)
    return [
        {
            "tokens": list(out.outputs[0].token_ids),
            "logprobs": [step[token].logprob for token, step in zip(out.outputs[0].token_ids, out.outputs[0].logprobs)],
            "prompt": [
                step[token].logprob for token, step in zip(out.prompt_token_ids[1:], (out.prompt_logprobs or [])[1:])
            ],
        }
        for out in found
    ]


def main(job: str, result: str) -> None:
    from vllm import LLM

    with open(job) as file:
        asked = json.load(file)
    llm = LLM(**asked["options"])
    numbers: dict[str, int] = {}
    answers = [answer(llm, batch, numbers, asked["tokens"], asked.get("prompt_logprobs")) for batch in asked["batches"]]
    with open(result, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
