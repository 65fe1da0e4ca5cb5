"""Clients whose packages are heavy, run by `make exports`: LangChain, evaluate, transformers' continuous batching."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.dts.integrations.test_clients import GREEDY, IDS, generated, setting  # noqa: E402, F401
from tests.dts.integrations.test_pipelines import TEXTS, tokenizer  # noqa: E402
from tests.dts.integrations.test_sentences import encoders  # noqa: E402, F401
from tests.dts.nn.classifiers import TEXT, family  # noqa: E402

pytestmark = pytest.mark.exports
SMALL = dict(num_blocks=16, max_batch_tokens=64)  # the library's own cache takes most of the memory that is free


def test_langchains_embeddings_have_a_task_each(encoders):  # noqa: F811
    from langchain_core.vectorstores import InMemoryVectorStore

    from dts.integrations.langchain import DTSEmbeddings

    dense, ours, model = encoders
    model.set_task(None)
    made = {task: DTSEmbeddings(ours, task) for task in ("a", "b")}
    for task, embeddings in made.items():
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS), dense[task].encode(TEXTS), atol=1e-4)
        np.testing.assert_allclose(embeddings.embed_query(TEXTS[1]), dense[task].encode(TEXTS[1]), atol=1e-4)
        store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
        assert store.similarity_search(TEXTS[2], k=1)[0].page_content == TEXTS[2]
    model.set_task("a")
    np.testing.assert_allclose(DTSEmbeddings(ours).embed_query(TEXTS[0]), dense["a"].encode(TEXTS[0]), atol=1e-4)
    model.set_task(None)
    unit = DTSEmbeddings(ours, "b", {"normalize_embeddings": True}).embed_query(TEXTS[0])
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="no task 'c'"):
        DTSEmbeddings(ours, "c")
    with pytest.raises(TypeError, match="DTSModel"):
        DTSEmbeddings(dense["a"], "a")


def test_evaluates_evaluator_is_of_the_task_that_is_set(tmp_path, monkeypatch):
    import datasets
    import evaluate
    import transformers

    # evaluate 0.4 asks whether a model is one of TensorFlow's, of which transformers 5 has no class
    monkeypatch.setattr(transformers, "TFPreTrainedModel", type("NoModel", (), {}), raising=False)
    monkeypatch.setattr(transformers, "TFAutoModel", type("NoModel", (), {}), raising=False)

    class Share(evaluate.Metric):
        """How many labels are right, without the hub's script."""

        def _info(self):
            features = datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            )
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"share": float(np.mean(np.equal(predictions, references)))}

    classes = {task: (["sad", "glad", "calm"], "single_label_classification") for task in "ab"}
    models = family(tmp_path, "BertForSequenceClassification", "BertConfig", TEXT, classes)
    model = models.model()
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer())
    for task in ("a", "b"):
        model.set_task(task)
        own = transformers.pipeline("text-classification", model=models.dense[task], tokenizer=tokenizer())
        names = models.dense[task].config.label2id
        rows = {"text": TEXTS, "label": [names[one["label"]] for one in own(TEXTS)]}
        found = evaluate.evaluator("text-classification").compute(
            model_or_pipeline=pipe,
            data=datasets.Dataset.from_dict(rows),
            metric=Share(),
            label_mapping=names,
        )
        assert found["share"] == 1.0


def test_continuous_batching_is_of_the_task_that_is_set(setting):  # noqa: F811
    from transformers import ContinuousBatchingConfig, GenerationConfig

    _, model, twins, _ = setting
    options = GenerationConfig(**GREEDY, eos_token_id=2, pad_token_id=0)
    model.set_task("b")
    try:
        found = model.generate_batch(
            inputs=[row.tolist() for row in IDS],
            generation_config=options,
            continuous_batching_config=ContinuousBatchingConfig(**SMALL),
        )
    finally:
        model.set_task(None)
    tokens = sorted(one.generated_tokens for one in found.values())
    wanted = [generated(twins["b"], row[None])[0, IDS.shape[1] :].tolist() for row in IDS]
    assert [t[: len(w)] for t, w in zip(tokens, sorted(wanted))] == sorted(wanted)


def test_continuous_batching_takes_a_task_a_prompt(setting):  # noqa: F811
    """What each task's dense model says greedily, under the names and in the order of one call."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    _, model, twins, _ = setting
    options = GenerationConfig(**GREEDY, eos_token_id=2, pad_token_id=0)
    prompts = [row.tolist() for row in IDS]
    tasks = [["a", "b", None][i % 3] for i in range(len(prompts))]
    model.set_task("b")
    try:
        for asked in (tasks, "a"):
            found = model.generate_batch(
                inputs=prompts,
                generation_config=options,
                continuous_batching_config=ContinuousBatchingConfig(**SMALL),
                tasks=asked,
            )
            assert list(found) == [f"req_{i}" for i in range(len(prompts))] == [r.request_id for r in found.values()]
            each = asked if isinstance(asked, list) else [asked] * len(prompts)
            for one, task, row in zip(found.values(), each, IDS):
                wanted = generated(twins[task], row[None])[0, IDS.shape[1] :].tolist()
                assert one.prompt_ids == row.tolist() and one.generated_tokens[: len(wanted)] == wanted
    finally:
        model.set_task(None)
    for wrong, why in (("auto", "told each prompt"), (["a"], "1 items, one a prompt"), ("x", "no task 'x'")):
        with pytest.raises(ValueError, match=why):
            model.generate_batch(inputs=prompts, generation_config=options, tasks=wrong)
    with pytest.raises(ValueError, match="persistent_manager"):
        model.generate_batch(inputs=prompts, tasks="a", persistent_manager=True)


def test_generate_compiles_itself_once_for_all_tasks(setting):  # noqa: F811
    """With a static cache, as transformers does by itself on a GPU: rows of several tasks, tasks that are loaded."""
    import torch
    from torch._dynamo.utils import counters
    from transformers.generation.configuration_utils import CompileConfig

    _, model, twins, _ = setting
    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    for tasks in (["a", "b"], ["b", "a"], "a", "b"):
        each = tasks if isinstance(tasks, list) else [tasks] * 2
        options = GREEDY | {"cache_implementation": "static", "compile_config": config}
        found = model.generate(IDS[:2], attention_mask=torch.ones_like(IDS[:2]), tasks=tasks, **options)
        for row, ids, task in zip(found, IDS, each):
            wanted = generated(twins[task], ids[None])[0]
            assert torch.equal(row[: len(wanted)], wanted)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    torch._dynamo.reset()
