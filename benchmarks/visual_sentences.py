"""Sentences that no image can show: how well they are told from the others, and what leaving them out does to a search.

Documents are the descriptions of the Grocery Store data set, in whose midst sentences of another world are put: tweets
about disasters (CrisisMMD, labelled not informative). The pool are the natural photos of `--split`. Compared are the
description alone, the mixed document as it is, with the share of sentences kept that photos of the pool can show, and
with as many kept at random. Separation is the area under the ROC curve of sentences of descriptions against the
others. The score was chosen on `train`.
"""

from __future__ import annotations

import argparse
import csv
import html
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from mca_perception.cli import reports
from mca_perception.retrieval.documents import Document, sentences, words
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.evaluation import FileSource, GroceryQueries, evaluate, read_grocery_queries
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.retriever import Retriever, SearchOptions
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.visual_sentences import VisualSentences

NAME = "visual_sentences"
SEED = 32_001
METRICS = ("mrr@10", "recall@10", "recall@100")
STRANGERS = 4
SHARES = (0.25, 0.5, 0.75)


def other_sentences(file: Path) -> list[str]:
    """Tweets as plain sentences of six to thirty words, each once."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [html.unescape(row["tweet_text"]) for row in rows if row["label_text"] == "not_informative"]
    plain = (" ".join(re.sub(r"https?://\S+|[@#]\w+|^RT\b|[.!?:]+", " ", text).split()) for text in texts)
    return [f"{text}." for text in dict.fromkeys(plain) if 6 <= len(words(text)) <= 30]


def mixed(queries: GroceryQueries, others: list[str]) -> dict[str, list[str]]:
    """Sentences of every description with others at random places among them."""
    rng = np.random.default_rng(SEED)
    documents = {}
    for topic, document in queries.queries.items():
        parts = sentences(document.text)
        for other in rng.choice(others, STRANGERS, replace=False):
            parts.insert(int(rng.integers(len(parts) + 1)), str(other))
        documents[topic] = parts
    return documents


def at_random(parts: list[str], share: float, rng: np.random.Generator) -> str:
    """As many sentences as the filter keeps, whichever, in their order."""
    count = int(np.ceil(share * len(parts)))
    return " ".join(parts[i] for i in sorted(rng.permutation(len(parts))[:count]))


def separation(visual: VisualSentences, queries: GroceryQueries, others: list[str]) -> float:
    """Area under the ROC curve of the score."""
    own = list(dict.fromkeys(part for d in queries.queries.values() for part in sentences(d.text)))
    chosen = others[: len(own)]
    scores = np.concatenate([visual.scores(own), visual.scores(chosen)])
    return round(float(roc_auc_score([1] * len(own) + [0] * len(chosen), scores)), 3)


def measure(retriever: Retriever, queries: GroceryQueries, others: list[str]) -> dict[str, Any]:
    """Metrics of every way to read the documents."""
    parts = mixed(queries, others)
    whole = {topic: " ".join(found) for topic, found in parts.items()}
    rng = np.random.default_rng(SEED + 1)

    def judged(texts: dict[str, str], share: float = 1.0) -> dict[str, Any]:
        documents = {topic: Document(text=text) for topic, text in texts.items()}
        options = SearchOptions(top_n=1000, use_entities=False, use_summary=False, visual_share=share)
        run = evaluate(retriever, documents, queries.qrels, METRICS, options)
        figures = {name: round(value, 4) for name, value in run.metrics.items()}
        return {**figures, "p50_ms": run.latency_ms["total"]["p50"]}

    alone = {topic: document.text for topic, document in queries.queries.items()}
    found = {"description alone": judged(alone), "mixed": judged(whole)}
    for share in SHARES:
        drawn = {topic: at_random(sentence, share, rng) for topic, sentence in parts.items()}
        found[f"description alone, share {share}"] = judged(alone, share)
        found[f"mixed, share {share}"] = judged(whole, share)
        found[f"mixed, {share} at random"] = judged(drawn)
    return found


def main() -> None:
    """Measure and write ``visual_sentences-<device>.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: see --retrieval-model")
    parser.add_argument("--retrieval-model", type=Path, help="bundle whose text side knows such descriptions")
    parser.add_argument("--grocery", type=Path, help="folder of the Grocery Store data set")
    parser.add_argument(
        "--tweets", type=Path, help="task_informative_text_img_agreed_lab_train.tsv of CrisisMMD"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if None in (options.retrieval_model, options.grocery, options.tweets):
        print(f"{NAME} is left out: give --retrieval-model, --grocery and --tweets")
        return
    encoder = DualEncoder.from_bundle(options.retrieval_model)
    queries = read_grocery_queries(options.grocery, options.split)
    others = other_sentences(options.tweets)
    with tempfile.TemporaryDirectory() as folder:
        store = RetrievalStore.write(
            folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension, dtype="float32"
        )
        with store:
            index_images(FileSource(queries.photos, options.split), store, encoder)
            retriever = Retriever(store, encoder)
            auc = separation(VisualSentences(store, encoder), queries, others)
            results = measure(retriever, queries, others)
            images = store.count
    report = {
        "benchmark": NAME,
        "note": options.note,
        "model": encoder.name,
        "split": options.split,
        "documents": len(queries.queries),
        "images": images,
        "other_sentences": len(others),
        "seed": SEED,
        "separation_auc": auc,
        "results": results,
        **reports.environment(("scikit-learn",)),
    }
    path = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(report)}.json"
    reports.write_json(path, report)
    print(path)
    print("separation", auc)
    for name, row in results.items():
        print(f"{name:32}", row)


if __name__ == "__main__":
    main()
