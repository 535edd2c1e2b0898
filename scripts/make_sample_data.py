"""Write a small made-up reading-comprehension set in the raw SQuAD v1.1 format: train.json and validation.json.

Each passage tells several facts about one to four invented subjects of the same kind (bridges, companies, ...), among
distractors of the same type as the answers, so that a reader has to match a question to its sentence and its subject;
"the first date in the passage" will not do.  Passages and questions word the same fact differently, and the two files
share no name and no phrase.  Passages run from about 40 to 500 tokens.

    python scripts/make_sample_data.py --output_dir data/sample

The wordings are in sample_templates.toml.  The same seed gives the same bytes.
"""

import argparse
import json
import random
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATES = Path(__file__).with_name("sample_templates.toml")
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
MIN_WORDS, MAX_WORDS = 22, 360
MAX_QUESTIONS_PER_PASSAGE = 5
PASSAGES_PER_ARTICLE = 4
PRONOUN_RATE = 0.4
FILLER_RATE = 0.3
UNANSWERABLE_RATE = 0.33
ANSWER_LEADS = {"date": "on ", "year": "in ", "reason": "because ", "town": "in "}
ORGANISATIONS = ("the {town} Institute", "the {last} Foundation", "the University of {town}", "the {last} Trust",
                 "the {town} Guild", "the Royal Society of {town}")  # fmt: skip


def split_pool(words: list[str], validation: bool) -> list[str]:
    """Every third word belongs to the validation set only."""
    return [word for i, word in enumerate(words) if (i % 3 == 2) == validation]


class Names:
    """Draws names, dates, amounts and phrases of one split; no value is drawn twice for one passage."""

    def __init__(self, templates: dict, rng: random.Random, validation: bool) -> None:
        lists = {name: text.split() for name, text in templates["words"].items()} | templates["phrases"]
        shared = ("month", "town_end", "filler")
        self.lists = {n: words if n in shared else split_pool(words, validation) for n, words in lists.items()}
        self.rng = rng
        self.used: set[str] = set()

    def new_passage(self) -> None:
        self.used.clear()

    def draw(self, kind: str, unit: str | None = None) -> str:
        """An unused value of a type.  Raises LookupError when the passage has used (nearly) all of them."""
        for _ in range(50):
            value = self.propose(kind)
            if value not in self.used:
                self.used.add(value)
                return f"{value} {unit}" if unit else value
        raise LookupError(kind)

    def propose(self, kind: str) -> str:
        pick = self.rng.choice
        match kind:
            case "person":
                return f"{pick(self.lists['first'])} {pick(self.lists['last'])}"
            case "town":
                return pick(self.lists["town_start"]) + pick(self.lists["town_end"])
            case "organisation":
                return self.fill(pick(ORGANISATIONS))
            case "year":
                return str(self.rng.randint(1790, 1990))
            case "date":
                return f"{self.rng.randint(1, 28)} {pick(self.lists['month'])} {self.propose('year')}"
            case "number":
                return f"{self.rng.randint(21, 980) * self.rng.choice((1, 10)):,}"
            case "money":
                return f"{self.rng.randint(11, 99) / 10} million crowns"
        return pick(self.lists[kind])

    def fill(self, template: str) -> str:
        """The template with every slot filled by a value of its type."""
        return SLOT.sub(lambda slot: self.draw(slot[1], slot[2]), template)


@dataclass(frozen=True)
class Fact:
    """A stated fact: the subject, the wordings of its question, and where its answer stands (in characters)."""

    subject: str
    kind: str
    questions: list[str]
    text: str
    start: int


@dataclass
class Passage:
    context: str = ""
    facts: list[Fact] = field(default_factory=list)
    unstated: list[tuple[str, list[str]]] = field(default_factory=list)

    def num_words(self) -> int:
        return len(self.context.split())

    def append(self, sentence: str) -> int:
        """Add a sentence, its first letter made a capital, and return where it starts."""
        start = len(self.context) + 1 if self.context else 0
        self.context = f"{self.context} {sentence[0].upper()}{sentence[1:]}".lstrip()
        return start


def write_fact(passage: Passage, fact: dict, subject: str, shown: str, names: Names) -> None:
    """State a fact in one sentence that calls the subject `shown`."""
    before, after = names.rng.choice(fact["passage"]).replace("{s}", shown).split("{a}")
    answer = names.fill("{" + fact["answer"] + "}")
    before, after = names.fill(before), names.fill(after)
    start = passage.append(before + answer + after) + len(before)
    text = passage.context[start : start + len(answer)]  # a capital if the answer opens the sentence
    passage.facts.append(Fact(subject, fact["answer"].split(":")[0], fact["questions"], text, start))


def write_block(passage: Passage, kind: dict, names: Names, num_words: int) -> None:
    """Tell about one new subject until its facts or the passage's words run out."""
    rng = names.rng
    subject = names.fill(rng.choice(kind["name"]))
    if rng.random() < FILLER_RATE:
        passage.append(names.fill(names.draw("filler")))
    if rng.random() < 0.5:
        passage.append(names.fill(rng.choice(kind["intro"]).replace("{s}", subject)))
    facts = rng.sample(kind["facts"], len(kind["facts"]))
    num_stated = rng.randint(3, len(facts) - 1)
    passage.unstated += [(subject, fact["questions"]) for fact in facts[num_stated:]]
    for i, fact in enumerate(facts[:num_stated]):
        if passage.num_words() > num_words:
            break
        shown = rng.choice(kind["pronoun"]) if i and rng.random() < PRONOUN_RATE else subject
        write_fact(passage, fact, subject, shown, names)
        if rng.random() < FILLER_RATE:
            passage.append(names.fill(names.draw("filler")))


def write_passage(kind: dict, names: Names) -> Passage:
    """A passage of a random length; one that ran out of names or tells an answer twice is dropped and begun again."""
    share = names.rng.random() ** 2  # more short passages than long ones, to save training time
    num_words = MIN_WORDS + int((MAX_WORDS - MIN_WORDS) * share)
    while True:
        names.new_passage()
        passage = Passage()
        try:
            while passage.num_words() < num_words:
                write_block(passage, kind, names, num_words)
        except LookupError:
            continue
        if all(passage.context.count(fact.text) == 1 for fact in passage.facts):
            return passage


def gold_answers(fact: Fact, context: str, variants: bool) -> list[dict]:
    """The answer; with `variants` also other spans that an annotator might mark, as in SQuAD's dev set."""
    spans = [(fact.start, fact.text)]
    lead = ANSWER_LEADS.get(fact.kind, "")
    if variants and lead and context[: fact.start].lower().endswith(lead):
        start = fact.start - len(lead)
        spans.append((start, context[start : fact.start + len(fact.text)]))
    if variants and fact.kind == "number":
        spans.append((fact.start, fact.text.split()[0]))
    if variants and fact.kind == "person" and len(re.findall(fact.text.split()[1], context)) == 1:
        surname = fact.text.split()[1]
        spans.append((fact.start + fact.text.index(surname), surname))
    return [{"text": text, "answer_start": start} for start, text in spans]


def make_questions(passage: Passage, rng: random.Random, validation: bool, version_2: bool) -> list[dict]:
    """Questions on a sample of the facts, without ids; only validation has several gold answers."""
    facts = rng.sample(passage.facts, min(MAX_QUESTIONS_PER_PASSAGE, len(passage.facts)))
    questions = []
    for fact in facts:
        question = rng.choice(fact.questions).replace("{s}", fact.subject)
        answers = gold_answers(fact, passage.context, variants=validation)
        if version_2 and rng.random() < UNANSWERABLE_RATE:
            subject, unstated = rng.choice(passage.unstated)
            question, answers = rng.choice(unstated).replace("{s}", subject), []
        flag = {"is_impossible": not answers} if version_2 else {}
        questions.append({"question": question, "answers": answers} | flag)
    return questions


def make_split(templates: dict, rng: random.Random, split: str, num_questions: int, version_2: bool) -> dict:
    """A whole file as a dictionary in the raw SQuAD format with exactly `num_questions` questions."""
    validation = split == "validation"
    names = Names(templates, rng, validation)
    articles: list[dict] = []
    left = num_questions
    while left:
        kind = rng.choice(templates["kinds"])
        names.new_passage()
        article = {"title": names.fill(kind["title"]), "paragraphs": []}
        articles.append(article)
        while left and len(article["paragraphs"]) < PASSAGES_PER_ARTICLE:
            passage = write_passage(kind, names)
            qas = make_questions(passage, rng, validation, version_2)[:left]
            for i, qa in enumerate(qas):
                qas[i] = {"id": f"{split}-{num_questions - left + i:05d}"} | qa
            article["paragraphs"].append({"context": passage.context, "qas": qas})
            left -= len(qas)
    return {"version": "v2.0" if version_2 else "1.1", "data": articles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for train.json and validation.json")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default: 0)")
    parser.add_argument("--train_questions", type=int, default=4000, help="(default: 4000)")
    parser.add_argument("--validation_questions", type=int, default=300, help="(default: 300)")
    parser.add_argument("--version_2", action="store_true", help="a third has no answer, as in SQuAD v2")
    args = parser.parse_args()
    if min(args.train_questions, args.validation_questions) < 1:
        parser.error("--train_questions and --validation_questions must be at least 1")

    templates = tomllib.loads(TEMPLATES.read_text(encoding="utf-8"))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, num_questions in (("train", args.train_questions), ("validation", args.validation_questions)):
        rng = random.Random(f"{args.seed} {split}")
        squad = make_split(templates, rng, split, num_questions, args.version_2)
        path = args.output_dir / f"{split}.json"
        path.write_text(json.dumps(squad, indent=1) + "\n", encoding="utf-8")
        num_passages = sum(len(article["paragraphs"]) for article in squad["data"])
        print(f"{path}: {num_questions} questions on {num_passages} passages in {len(squad['data'])} articles")


if __name__ == "__main__":
    main()
